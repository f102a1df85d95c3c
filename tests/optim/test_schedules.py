import pytest

from hpcai.optim import schedules


def test_constant():
    assert [schedules.constant(0.1)(s) for s in (0, 5, 10**6)] == [0.1] * 3


@pytest.mark.parametrize(
    "make",
    [
        lambda: schedules.constant(1.0, warmup=4),
        lambda: schedules.cosine(1.0, steps=10, warmup=4),
        lambda: schedules.step(1.0, every=100, factor=0.1, warmup=4),
    ],
)
def test_warmup_rises_in_a_line_to_the_full_rate(make):
    schedule = make()
    assert [round(schedule(s), 9) for s in range(5)] == [0.2, 0.4, 0.6, 0.8, 1.0]


def test_cosine_ends_at_its_final_rate_and_stays_there():
    schedule = schedules.cosine(1.0, steps=10, warmup=2, final=0.1)
    assert schedule(6) == pytest.approx(0.55)
    assert schedule(10) == schedule(50) == pytest.approx(0.1)


def test_step_falls_at_every_multiple():
    assert [schedules.step(1.0, every=3, factor=0.5)(s) for s in (0, 2, 3, 6)] == [1, 1, 0.5, 0.25]


def test_a_cosine_ends_at_zero_unless_it_is_said_where():
    assert schedules.cosine(0.1, steps=10)(10) == pytest.approx(0.0, abs=1e-12)
    assert schedules.cosine(0.1, steps=10, final=0.02)(10) == pytest.approx(0.02)
