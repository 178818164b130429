"""A SLURM cluster of one node in a folder: its own key, ports and state, two pretended A100s, no accounting.

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

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "squeue", "scontrol", "scancel", "srun")
START_SECONDS = 30
GPUS = 2

# Nothing the jobs ask for is really there: the node claims CPUs and memory enough for the profile's requests.
SLURM_CONF = """
ClusterName=sublora-test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=1,sched_interval=2,defer_batch
MinJobAge=3600
KillWait=5
ReturnToService=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=16 RealMemory=200000 Gres=gpu:a100:{gpus} State=UNKNOWN
PartitionName=gpu Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
GRES_CONF = "Name=gpu Type=a100 File={folder}/gpu[0-{last}]\n"


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
    """munged, slurmctld and slurmd as children of this process; RuntimeError with their logs if they do not start."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._daemons: list[subprocess.Popen[bytes]] = []

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

    def _start(self) -> None:
        host = socket.gethostname().split(".")[0]
        controller_port, node_port = _free_ports(2)
        values = {
            "folder": self.folder,
            "host": host,
            "controller_port": controller_port,
            "node_port": node_port,
            "gpus": GPUS,
            "last": GPUS - 1,
        }
        for name in ("munge", "state", "spool", "bin"):
            (self.folder / name).mkdir(parents=True, mode=0o755)
        for index in range(GPUS):
            (self.folder / f"gpu{index}").touch()
        (self.folder / "slurm.conf").write_text(SLURM_CONF.format(**values))
        (self.folder / "gres.conf").write_text(GRES_CONF.format(**values))
        # Snakemake strips SLURM_* from the environment of its steps, and this cluster is not the one of /etc/slurm.
        srun = self.folder / "bin" / "srun"
        srun.write_text(f'#!/bin/sh\nSLURM_CONF={self.folder}/slurm.conf exec {shutil.which("srun")} "$@"\n')
        srun.chmod(0o755)
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        munge = self.folder / "munge"
        self._spawn(
            *("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={munge / 'socket'}"),
            *(f"--pid-file={munge / 'pid'}", f"--log-file={munge / 'log'}", f"--seed-file={munge / 'seed'}"),
        )
        self._wait((munge / "socket").exists, "munged")
        self._spawn("slurmctld", "-D", "-c", "-i")
        self._spawn("slurmd", "-D", "-c")
        self._wait(self._idle, "slurmctld and slurmd")

    def _spawn(self, *words: str) -> None:
        with open(self.folder / f"{words[0]}.out", "wb") as output:
            self._daemons.append(
                subprocess.Popen(
                    words,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def _idle(self) -> bool:
        try:
            return self.command("sinfo", "--noheader", "--format=%T").strip() == "idle"
        except subprocess.SubprocessError:
            return False

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
    with Cluster(Path(sys.argv[1])) as cluster:
        print(f"export SLURM_CONF={cluster.environment['SLURM_CONF']}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.sigwait([signal.SIGINT, signal.SIGTERM])


if __name__ == "__main__":
    main()
