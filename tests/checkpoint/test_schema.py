"""The validator of JSON Schema against the library jsonschema: what that refuses is refused, and fields are named."""

import random

import pytest

from hpcai.checkpoint import schema

VALUES = [
    None,
    True,
    False,
    0,
    1,
    5,
    6,
    -1,
    1.0,
    2.5,
    float("nan"),
    float("inf"),
    2**70,
    "",
    "a",
    "ab",
    "a\n",
    [],
    [1],
    ["a", 1],
    {},
    {"a": 1},
]

SCHEMAS = [
    {"type": "integer", "minimum": 0, "maximum": 5},
    {"type": "integer"},
    {"type": ["null", "integer"], "minimum": 1},
    {"type": "number", "exclusiveMinimum": 0},
    {"type": "number", "minimum": 1, "maximum": 5},
    {"type": "boolean"},
    {"type": "string", "pattern": "^a?$"},
    {"type": "string", "minLength": 1, "maxLength": 1},
    {"const": 1},
    {"enum": ["a", "ab"]},
    {"type": "array", "minItems": 1, "maxItems": 1, "items": {"type": "integer"}},
    {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}]},
    {"type": "object", "required": ["a"], "properties": {"a": {"const": 1}}, "additionalProperties": False},
    {
        "type": "array",
        "items": {"$ref": "#/$defs/one"},
        "$defs": {"one": {"type": ["null", "array"], "items": {"$ref": "#/$defs/one"}}},
    },
]


def refused(rules, value):
    try:
        schema.check(rules)(value)
    except schema.Refused as error:
        return str(error)
    return ""


@pytest.mark.parametrize("rules", SCHEMAS, ids=str)
def test_what_the_library_refuses_is_refused_and_little_else(rules):
    library = pytest.importorskip("jsonschema").Draft202012Validator(rules)
    rng = random.Random(0)
    made = [*VALUES, *([rng.choice(VALUES) for _ in range(rng.randrange(4))] for _ in range(100))]
    for value in made:
        if not library.is_valid(value):
            assert refused(rules, value), value
        elif refused(rules, value):  # stricter, in what the module's docstring says
            assert "1.0" in repr(value) or "nan" in repr(value) or "inf" in repr(value) or "\n" in str(value), value


@pytest.mark.parametrize(
    "rules, value",
    [({"type": "number"}, float("inf")), ({"type": "number"}, float("nan")), ({"type": "integer"}, 1.0), (SCHEMAS[5], "a\n")],
    ids=str,
)
def test_what_the_standard_leaves_open_is_refused(rules, value):
    assert refused(rules, value)


def test_a_message_has_the_field_what_it_is_and_what_is_wanted():
    rules = {
        "type": "object",
        "required": ["a"],
        "properties": {
            "a": {"type": "array", "items": {"type": "object", "properties": {"b": {"type": "integer", "minimum": 3}}}}
        },
        "additionalProperties": False,
    }
    assert refused(rules, {}) == "a is missing"
    assert refused(rules, {"a": [{}, {"b": 2}]}) == "a[1].b is 2; wanted is 3 or more"
    assert refused(rules, {"a": [{"b": "x" * 1000}]}).startswith("a[0].b is 'xxxx")
    assert len(refused(rules, {"a": [{"b": "x" * 1000}]})) < 150
    assert refused(rules, {"a": 10**5000}) == f"a is a number of {(10**5000).bit_length()} bits; wanted is a list"
    assert refused(rules, {"a": [], "new\n": 1}) == r"has the unknown field 'new\n'"


def test_a_schema_with_a_keyword_that_is_not_known_is_no_schema():
    for rules in (
        {"format": "date"},
        {"type": "object", "properties": {"a": {"uniqueItems": True}}},
        {"additionalProperties": {}},
    ):
        with pytest.raises(KeyError, match="no rule for"):
            schema.check(rules)


@pytest.mark.parametrize("value, deep", [(1, 0), ([], 1), ({"a": [[], 1]}, 3), ([[[[[[[]]]]]]], 4)])
def test_how_deep_lists_and_objects_lie_within_each_other(value, deep):
    assert schema.depth(value, most=3) == deep
