"""A SLURM cluster of two nodes in a folder: own key, ports, state and accounting, two pretended A100s on each node.

Accounting is slurmdbd with a MariaDB of its own. The partition ends at 24 hours; jobs of the QOS `high` preempt those
of `low`, which are told GRACE_SECONDS before; jobs of the QOS `narrow` are few: a third is refused at submission.

`with Cluster(folder) as cluster:` starts it and ends it. `python tests/slurm/cluster.py FOLDER` keeps one running
until Ctrl-C and prints the variables with which sbatch and squeue find it.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import psutil

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge", "slurmdbd", "mariadb-server")
PROGRAMS = (
    *("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd", "mariadb", "mariadb-install-db"),
    *("sbatch", "squeue", "scontrol", "scancel", "srun", "sacct", "sacctmgr"),
)
START_SECONDS = 30
NODES = ("node1", "node2")
GPUS = 2
"""GPUs of each node."""
GRACE_SECONDS = 4
ACCOUNT, DATABASE_USER = "sublora", "slurm"

# Nothing the jobs ask for is really there: the node claims CPUs and memory enough for the profile's requests.
SLURM_CONF = """
ClusterName=sublora-test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={accounting_port}
AccountingStorageEnforce=associations,limits,qos
AccountingStoragePass={folder}/munge/socket
AccountingStorageTRES=gres/gpu
JobCompType=jobcomp/none
PreemptType=preempt/qos
PreemptMode=REQUEUE
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=1,sched_interval=2,defer_batch
MinJobAge=3600
KillWait=5
ReturnToService=2
GresTypes=gpu
{nodes}
PartitionName=gpu Nodes=ALL Default=YES DefaultTime=60 MaxTime=24:00:00 State=UP
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} "
    "CPUs=16 RealMemory=200000 Gres=gpu:a100:{gpus} State=UNKNOWN"
)
GRES_CONF = "Name=gpu Type=a100 File={folder}/gpu[0-{last}]\n"
SLURMDBD_CONF = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
DbdHost=localhost
DbdPort={accounting_port}
SlurmUser=root
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser={user}
StoragePass={password}
StorageLoc=slurm_acct_db
"""


def why_not() -> str | None:
    """Why no cluster can be started here, in one line; None if it can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if os.geteuid() != 0:
        return "SLURM cannot be started: slurmd wants to be root, this user is not"
    if missing:
        return f"SLURM is not installed (no {', '.join(missing)}); on Debian: apt-get install {' '.join(PACKAGES)}"
    return None


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Cluster:
    """The daemons as children of this process; RuntimeError with their logs if they do not start."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._node_daemons: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def environment(self) -> dict[str, str]:
        """What commands need to find this cluster and no other."""
        mine = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN"))}
        path = os.pathsep.join([str(self.folder / "bin"), _path()])
        return mine | {"PATH": path, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def __enter__(self) -> "Cluster":
        try:
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(subprocess.SubprocessError):
            self.command("scancel", "--user", "root", "--full")
            deadline = time.monotonic() + START_SECONDS
            while self.command("squeue", "--noheader", "--format=%i") and time.monotonic() < deadline:
                time.sleep(0.5)
        self._end()

    def command(self, *words: str) -> str:
        """Output of a SLURM command; CalledProcessError if it fails."""
        return subprocess.run(
            words, env=self.environment, check=True, capture_output=True, text=True, timeout=START_SECONDS
        ).stdout

    def jobs(self) -> list[dict[str, str]]:
        """What `scontrol show job` says of every job so far."""
        text = self.command("scontrol", "--oneliner", "show", "jobs")
        lines = [line for line in text.splitlines() if line.startswith("JobId=")]
        return [dict(item.split("=", 1) for item in line.split() if "=" in item) for line in lines]

    def lose_node(self, name: str) -> None:
        """As if its power failed: slurmd and every process of its jobs end at once, and the controller notices."""
        daemon = self._node_daemons.pop(name)
        daemon.kill()
        daemon.wait()
        log = str(self.folder / f"slurmd-{name}.log")  # which every process of this slurmd has open
        for step in [each for each in psutil.process_iter(["name"]) if each.info["name"] == "slurmstepd"]:
            with contextlib.suppress(psutil.NoSuchProcess):
                if log in (file.path for file in step.open_files()):
                    for process in (step, *step.children(recursive=True)):
                        process.kill()
        self.command("scontrol", "update", f"nodename={name}", "state=down", "reason=lost")

    def restore_node(self, name: str) -> None:
        self._start_node(name)
        self.command("scontrol", "update", f"nodename={name}", "state=resume")

    def _start_node(self, name: str) -> None:
        self._node_daemons[name] = self._spawn("slurmd", "-D", "-c", "-N", name)

    def _start(self) -> None:
        host = socket.gethostname().split(".")[0]
        controller, accounting, database, *node_ports = _free_ports(3 + len(NODES))
        values = {
            "folder": self.folder,
            "host": host,
            "controller_port": controller,
            "accounting_port": accounting,
            "database_port": database,
            "nodes": "\n".join(
                NODE.format(name=name, host=host, port=port, gpus=GPUS)
                for name, port in zip(NODES, node_ports, strict=True)
            ),
            "last": GPUS - 1,
            "user": DATABASE_USER,
            "password": os.urandom(8).hex(),
        }
        for name in ("munge", "state", "bin", "database", *(f"spool/{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True, mode=0o755)
        for index in range(GPUS):
            (self.folder / f"gpu{index}").touch()
        for name, text in (
            ("slurm.conf", SLURM_CONF),
            ("gres.conf", GRES_CONF),
            ("slurmdbd.conf", SLURMDBD_CONF),
        ):
            (self.folder / name).write_text(text.format(**values))
        (self.folder / "slurmdbd.conf").chmod(0o600)
        # Snakemake strips SLURM_* from the environment of its steps, and this cluster is not the one of /etc/slurm.
        srun = self.folder / "bin" / "srun"
        srun.write_text(f'#!/bin/sh\nSLURM_CONF={self.folder}/slurm.conf exec {shutil.which("srun")} "$@"\n')
        srun.chmod(0o755)
        self._start_munge()
        self._start_database(database, values["password"])
        self._spawn("slurmdbd", "-D")
        self._wait(lambda: self._answers("sacctmgr", "--noheader", "show", "cluster"), "slurmdbd")
        self._add_accounts()
        self._spawn("slurmctld", "-D", "-c", "-i")
        for node in NODES:
            self._start_node(node)
        self._wait(self._idle, "slurmctld and slurmd")

    def _start_munge(self) -> None:
        munge = self.folder / "munge"
        key = munge / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        self._spawn(
            *("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={munge / 'socket'}"),
            *(f"--pid-file={munge / 'pid'}", f"--log-file={munge / 'log'}", f"--seed-file={munge / 'seed'}"),
        )
        self._wait((munge / "socket").exists, "munged")

    def _start_database(self, port: int, password: object) -> None:
        """A MariaDB that knows one user, on the loopback interface."""
        data, server = self.folder / "database", self.folder / "database.socket"
        place = ("--no-defaults", f"--datadir={data}")
        self.command("mariadb-install-db", *place, "--user=root", "--skip-test-db")
        self._spawn(
            *("mariadbd", *place, "--user=root", f"--socket={server}", f"--port={port}", "--bind-address=127.0.0.1"),
            *(f"--pid-file={self.folder / 'database.pid'}", "--innodb-flush-log-at-trx-commit=0"),
        )
        client = ("mariadb", "--no-defaults", f"--socket={server}", "--user=root", "--execute")
        self._wait(lambda: self._answers(*client, "select 1"), "mariadbd")
        user = f"'{DATABASE_USER}'@'127.0.0.1'"
        self.command(*client, f"create user {user} identified by '{password}'; grant all on *.* to {user}")

    def _add_accounts(self) -> None:
        for words in (
            ("cluster", "sublora-test"),
            ("qos", "low", f"GraceTime={GRACE_SECONDS}"),
            ("qos", "high", "Preempt=low"),
            ("qos", "narrow", "MaxSubmitJobsPerUser=2"),
            ("account", ACCOUNT),
            ("user", "root", f"Account={ACCOUNT}"),
        ):
            self.command("sacctmgr", "--immediate", "add", *words)
        # The database knows root beforehand, in an account of that name.
        change = ("modify", "user", "root", "set", f"DefaultAccount={ACCOUNT}", "QOS=normal,low,high,narrow")
        self.command("sacctmgr", "--immediate", *change)

    def _spawn(self, *words: str) -> subprocess.Popen[bytes]:
        with open(self.folder / f"{words[0]}-{len(self._daemons)}.out", "wb") as output:
            daemon = subprocess.Popen(
                words,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._daemons.append(daemon)
        return daemon

    def _answers(self, *words: str) -> bool:
        try:
            self.command(*words)
        except subprocess.SubprocessError:
            return False
        return True

    def _idle(self) -> bool:
        try:
            states = self.command("sinfo", "--noheader", "--Node", "--format=%T").split()
        except subprocess.SubprocessError:
            return False
        return states == ["idle"] * len(NODES)

    def _wait(self, ready: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            dead = [daemon.args[0] for daemon in self._daemons if daemon.poll() is not None]
            if dead or time.monotonic() > deadline:
                raise RuntimeError(f"{what} did not start (ended: {dead}):\n{self.logs()}")
            time.sleep(0.2)

    def logs(self) -> str:
        """The last lines of every daemon's output."""
        files = sorted([*self.folder.glob("*.out"), *self.folder.glob("*.log"), self.folder / "munge" / "log"])
        return "\n".join(
            f"{path.name}: {line}"
            for path in files
            if path.exists()
            for line in path.read_text(errors="replace").splitlines()[-15:]
        )

    def _end(self) -> None:
        """End what was started here, last first, by its process id."""
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons.clear()


def main() -> None:
    if reason := why_not():
        sys.exit(reason)
    ends = {signal.SIGINT, signal.SIGTERM}
    with Cluster(Path(sys.argv[1])) as cluster:
        signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # not before: the daemons would inherit it
        print(f"export SLURM_CONF={cluster.environment['SLURM_CONF']}", flush=True)
        signal.sigwait(ends)


if __name__ == "__main__":
    main()
