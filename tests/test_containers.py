"""The MPIJob fits the operator's schema; the Apptainer definition installs what there is. Neither is run here."""

import subprocess
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml

from hpcai.train.options import parser

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "containers"

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="installed without containers/")


def fields(required=(), **properties):
    """A schema of an object that has these fields and no others."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def items(schema):
    return {"type": "array", "items": schema}


TEXT, COUNT = {"type": "string"}, {"type": "integer"}
QUANTITIES = {"type": "object", "additionalProperties": {"anyOf": [COUNT, TEXT]}}
CONTAINER = fields(
    ["name"],
    name=TEXT,
    image=TEXT,
    workingDir=TEXT,
    command=items(TEXT),
    args=items(TEXT),
    env=items(fields(["name"], name=TEXT, value=TEXT)),
    resources=fields(limits=QUANTITIES, requests=QUANTITIES),
    volumeMounts=items(fields(["name", "mountPath"], name=TEXT, mountPath=TEXT, readOnly={"type": "boolean"})),
)
VOLUME = fields(
    ["name"],
    name=TEXT,
    persistentVolumeClaim=fields(["claimName"], claimName=TEXT),
    emptyDir=fields(medium=TEXT, sizeLimit={"anyOf": [COUNT, TEXT]}),
)
POD = fields(["containers"], containers=items(CONTAINER), volumes=items(VOLUME), terminationGracePeriodSeconds=COUNT)
REPLICAS = fields(replicas=COUNT, restartPolicy={"enum": ["Always", "OnFailure", "Never", "ExitCode"]}, template=fields(spec=POD))
# The names and types that are used of spec.versions[v2beta1].schema in manifests/base/kubeflow.org_mpijobs.yaml of
# github.com/kubeflow/mpi-operator at 013fa15b22a60180c99f5111a904b60099828f89. Of a pod it is the part that a training run needs.
MPIJOB = fields(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "kubeflow.org/v2beta1"},
    kind={"const": "MPIJob"},
    metadata=fields(["name"], name=TEXT, namespace=TEXT, labels={"type": "object", "additionalProperties": TEXT}),
    spec=fields(
        ["mpiReplicaSpecs"],
        mpiImplementation={"enum": ["OpenMPI", "Intel"]},
        mpiReplicaSpecs=fields(["Launcher", "Worker"], Launcher=REPLICAS, Worker=REPLICAS),
        runPolicy=fields(
            activeDeadlineSeconds=COUNT,
            backoffLimit=COUNT,
            cleanPodPolicy={"enum": ["None", "Running", "All"]},
            suspend={"type": "boolean"},
            ttlSecondsAfterFinished=COUNT,
        ),
        slotsPerWorker=COUNT,
        sshAuthMountPath=TEXT,
    ),
)


def mpijob():
    return yaml.safe_load_all((FOLDER / "mpijob.yaml").read_text())


def test_the_mpijob_fits_the_operators_schema():
    job, claim = mpijob()
    jsonschema.validate(job, MPIJOB)
    for spec in job["spec"]["mpiReplicaSpecs"].values():
        pod = spec["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert {mount["name"] for one in pod["containers"] for mount in one["volumeMounts"]} == set(volumes)
        assert volumes["runs"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert spec["restartPolicy"] == "OnFailure"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job | {"spec": job["spec"] | {"slots": 4}}, MPIJOB)


def test_the_mpijob_resumes_with_options_that_there_are_on_as_many_ranks_as_slots():
    spec = next(mpijob())["spec"]
    launcher = spec["mpiReplicaSpecs"]["Launcher"]["template"]["spec"]["containers"][0]
    line, _, *options = launcher["args"]
    words = line.split("hpcai.train")[1].split(';"')[0].split('"$@"')[0].split()
    parsed = parser.parse([*words, *options])
    assert parsed.resume == "auto"
    assert parsed.run_dir.startswith(launcher["volumeMounts"][0]["mountPath"])
    assert f"mpirun -n {spec['slotsPerWorker'] * spec['mpiReplicaSpecs']['Worker']['replicas']} " in line
    subprocess.run([*launcher["command"][:1], "-n", "-c", line], check=True)


def test_the_apptainer_definition_installs_an_extra_that_there_is():
    text = (FOLDER / "hpcai.def").read_text()
    for section in ("Bootstrap: docker", "From: ", "%files", "%post", "%test", "%runscript"):
        assert text.count(f"\n{section}") == 1, section
    extra = text.split("%arguments")[1].split("extra=")[1].split()[0]
    assert extra in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.mark.parametrize("extra, code", [("openmpi", 0), ("mpich", 0), ("", 0), ("openmp", 2), ("mpich] torch[x", 2)])
def test_the_apptainer_definition_refuses_an_extra_that_there_is_not(extra, code):
    """The first lines of %post, before anything is installed."""
    lines = (FOLDER / "hpcai.def").read_text().split("%post")[1].split("apt-get")[0].replace("{{ extra }}", extra)
    done = subprocess.run(["bash", "-c", lines], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (code, bool(code))
