"""A real Slurm on this machine for tests: munge, a controller, and nodes that are processes in namespaces of their own.

Each node has its own hostname, process ids and /dev/shm, and dies with all its processes when its first process is killed. All
daemons run in the foreground as children of this process and die with it. Needs root and Debian's slurmctld, slurmd, slurm-client,
munge, libpmix2 and slurm-wlm-basic-plugins.
"""

import contextlib
import glob
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from tests import owned

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "unshare", "setpriv")

CONFIGURATION = """\
ClusterName=hpcai
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/sock
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=100000
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
SlurmdTimeout={dead_s}
SlurmctldTimeout=10
InactiveLimit=0
MinJobAge=300
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
"""


def refused():
    """Why there can be no Slurm here, or an empty text."""
    if os.geteuid():
        return "a Slurm of one's own wants root"
    if absent := [name for name in PROGRAMS if not shutil.which(name)]:
        return f"not installed: {', '.join(absent)}"
    done = subprocess.run(["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc", "true"])
    return "" if done.returncode == 0 else "namespaces are not allowed here"


class Cluster:
    """A started Slurm; `environment` makes sbatch and its like talk to it."""

    def __init__(self, nodes=3, cpus=4, dead_s=10):
        # Sockets want short paths; on /tmp also when TMPDIR is elsewhere.
        self.folder = owned.folder("slurm", "/tmp")
        self.environment = {"SLURM_CONF": str(self.folder / "slurm.conf")}
        self.nodes = {f"node{i + 1}": None for i in range(nodes)}
        self.others, self.cpus = [], cpus
        try:
            self._configure(dead_s)
            self._start()
        except BaseException:
            self.close()
            raise

    def _configure(self, dead_s):
        for name in ("munge", "state", "pmix", *(f"spool-{n}" for n in self.nodes), *(f"pmix-{n}" for n in self.nodes)):
            (self.folder / name).mkdir(mode=0o700)
        self.folder.chmod(0o755)
        (self.folder / "munge").chmod(0o755)
        (self.folder / "munge" / "key").write_bytes(os.urandom(1024))
        (self.folder / "munge" / "key").chmod(0o600)
        hosts = Path("/etc/hosts").read_text() + "".join(f"127.0.0.1 {name}\n" for name in self.nodes)
        (self.folder / "hosts").write_text(hosts)
        (self.folder / "mpi.conf").write_text(f"PMIxCliTmpDirBase={self.folder}/pmix\n")
        controller, *ports = free_ports(1 + len(self.nodes))
        text = CONFIGURATION.format(controller=controller, folder=self.folder, dead_s=dead_s)
        for name, port in zip(self.nodes, ports, strict=True):
            text += f"NodeName={name} NodeHostname={name} NodeAddr=127.0.0.1 Port={port} CPUs={self.cpus} State=UNKNOWN\n"
        common = f"Nodes={','.join(self.nodes)} MaxTime=60 State=UP"
        text += f"PartitionName=main {common} Default=YES OverSubscribe=NO PriorityTier=1 GraceTime=20\n"
        text += f"PartitionName=high {common} Default=NO PriorityTier=10 PreemptMode=OFF\n"
        (self.folder / "slurm.conf").write_text(text)

    def _start(self):
        for path in glob.glob("/usr/lib/*/pmix2/lib"):  # Debian's plugin opens a name that its package lacks
            if not os.path.exists(f"{path}/libpmix.so"):
                os.symlink("libpmix.so.2", f"{path}/libpmix.so")
        munge = self.folder / "munge"
        files = [f"--{n}-file={munge / n}" for n in ("key", "pid", "log", "seed")]
        self.others.append(self._child("munged", "--foreground", "--force", f"--socket={munge / 'sock'}", *files))
        wait_for(lambda: (munge / "sock").exists(), "munge's socket")
        self.others.append(self._child("slurmctld", "-D"))
        for name in self.nodes:
            self.start_node(name)
        wait_for(lambda: self.say("sinfo", "-h", "-o", "%t%D").startswith(f"idle{len(self.nodes)}"), "idle nodes")

    def _child(self, *command):
        log = (self.folder / f"{command[0]}.out").open("ab")
        with log:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                env=os.environ | self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def start_node(self, name):
        """A slurmd as the second process of new namespaces; whoever kills the first ends all."""
        f = self.folder
        inside = (
            f"hostname {name} && mount --bind {f}/pmix-{name} {f}/pmix && mount --bind {f}/hosts /etc/hosts"
            f" && mount -t tmpfs tmpfs /dev/shm && slurmd -D -N {name}"
        )
        spaces = ("--mount", "--uts", "--ipc", "--pid", "--mount-proc", "--fork", "--kill-child=KILL")
        self.nodes[name] = self._child("unshare", *spaces, "sh", "-c", inside)

    def kill_node(self, name):
        """As if its power had failed."""
        self.nodes[name].kill()
        self.nodes[name].wait()

    def run(self, *command, limit=30, env=os.environ, cwd=None):
        """Run one of Slurm's commands, or another in this Slurm's environment."""
        words = [str(word) for word in command]
        return subprocess.run(words, env=env | self.environment, cwd=cwd, capture_output=True, text=True, timeout=limit)

    def say(self, *command, **more):
        """What a command prints, stripped."""
        return self.run(*command, **more).stdout.strip()

    def state(self, job):
        """A job's state as scontrol says it, such as RUNNING; empty if Slurm does not know it."""
        found = re.search(
            r"^ +JobState=(\w+)", self.say("scontrol", "show", "job", str(job)), re.MULTILINE
        )  # names may say so too
        return found[1] if found else ""

    def ends(self, job, limit=60):
        """Wait until a job has ended; returns its state."""
        going = {"", "PENDING", "RUNNING", "COMPLETING"}
        return wait_for(lambda: (state := self.state(job)) not in going and state, lambda: self.about(job), limit)

    def about(self, job):
        """All that is known of a job, for a failed test: how Slurm describes it, its output, the controller's last words."""
        said = self.say("scontrol", "show", "job", str(job))
        output = re.search(r"StdOut=(.+)", said)
        logs = [self.folder / "slurmctld.log", *([Path(output[1])] if output else [])]
        return "\n".join([said, *(f"{log}:\n{log.read_text()[-4000:]}" for log in logs if log.is_file())])

    def starts_again(self, job, limit=60):
        """Wait until a job is requeued and has started anew, without the two minutes that Slurm may hold it.

        But not before its nodes have cleared up and two seconds more: in the second of its end a job is not started again ("Job
        credential revoked"), and under pmi2 a step that follows at once on one of the same name fails ("failed to send temp kvs").
        """
        clear = []

        def started():
            said = self.say("scontrol", "-o", "show", "job", str(job))
            state, restarts = (re.search(rf"\b{name}=(\w+)", said) for name in ("JobState", "Restarts"))
            if state is None or restarts is None or restarts[1] == "0" or state[1] in ("COMPLETING", "REQUEUED"):
                return False
            number = re.search("JobId=(.+?) ", said)[1]
            alive = [name for name, child in self.nodes.items() if child.poll() is None]
            if state[1] != "PENDING" or any(list(self.folder.glob(f"spool-{name}/*[_.]{number}.*")) for name in alive):
                return state[1] != "PENDING"
            clear.append(time.monotonic())
            if clear[-1] - clear[0] > 2:
                self.run("scontrol", "update", f"JobId={job}", "StartTime=now")
            return False

        wait_for(started, f"a restart of job {job}", limit, pause=0.25)

    def close(self):
        """End everything and remove the folder."""
        with contextlib.suppress(Exception):
            self.run("scancel", "--state=PENDING", "--user=root", limit=5)
        for child in (*self.nodes.values(), *reversed(self.others)):
            if child is not None and child.poll() is None:
                child.send_signal(signal.SIGKILL)
        for child in (*self.nodes.values(), *self.others):
            if child is not None:
                child.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def free_ports(count):
    """Ports nobody listens on, all different."""
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in made:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in made]


def wait_for(what, name, limit=60, pause=0.1):
    """Until what() is true; returns it. `name` is a text, or a function that tells what is the case instead."""
    end = time.monotonic() + limit
    while not (found := what()):
        assert time.monotonic() < end, f"waited in vain for {name() if callable(name) else name}"
        time.sleep(pause)
    return found
