"""A real Slurm of one node, started for the test: jobs do the tomograms, a cancelled one loses nothing."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from etsam.manifest import Entry, read_manifest
from etsam.options import SegmentOptions
from etsam.results import how_far
from etsam.segmentation import segment_file
from test_engine import options, write_tomograms

__all__ = ["options"]

DAEMONS = ("munged", "slurmctld", "slurmd")
TOMOGRAMS = 6
PATIENCE = 60  # seconds until the node is up
LIMIT = 500  # seconds until all is done

CONFIG = """\
ClusterName=etsam
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
ReturnToService=2
KillWait=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000 Gres=gpu:fake:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES State=UP MaxTime=60
"""

JOBS = """\
cores = 1
memory = "900MB"
walltime = "00:30:00"
interface = "lo"
local_directory = "{folder}"
log_directory = "{folder}"
job_extra_directives = ["--gres=gpu:1"]
"""


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on."""
    with ExitStack() as stack:
        opened = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in opened:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in opened]


def wait_until(true: Callable[[], bool], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"{what} took more than {seconds} s"
        time.sleep(0.2)


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Start munge, controller and node in a folder of their own, with two GPUs that are plain files."""
    missing = [name for name in (*DAEMONS, "sbatch", "scancel") if not shutil.which(name)]
    if missing:
        pytest.skip(f"no Slurm here ({', '.join(missing)}): Debian's slurmctld, slurmd, munge")
    if os.geteuid() != 0:
        pytest.skip("slurmd starts jobs as root only")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # a socket's name must be short
    folder.chmod(0o711)
    host = socket.gethostname().split(".")[0]
    fields = {"host": host, "user": "root", "folder": folder, "cpus": os.cpu_count()}
    (folder / "slurm.conf").write_text(CONFIG.format(ports=free_ports(2), **fields))
    for name in ("gpu0", "gpu1"):
        (folder / name).touch()
    (folder / "gres.conf").write_text(f"Name=gpu Type=fake File={folder}/gpu[0-1]\n")
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    munge = ["munged", "--force", "--foreground"]
    munge += [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    commands = [[*munge, f"--socket={folder}/munge.sock"], ["slurmctld", "-D"], ["slurmd", "-D"]]
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        for command in commands:
            log = stack.enter_context((folder / f"{command[0]}.log").open("w"))
            daemon = subprocess.Popen(command, stdout=log, stderr=log)
            stack.callback(daemon.wait, 30)
            stack.callback(daemon.terminate)
            if command is commands[0]:
                wait_until((folder / "munge.sock").exists, PATIENCE, "munge")
        wait_until(lambda: asked("sinfo", "-h", "-o", "%t") == "idle", PATIENCE, "the node")
        yield folder


def asked(*command: str) -> str:
    """What a command prints; nothing where it fails."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def at_work(manifest: Path) -> list[Entry]:
    """Tomograms in whose middle a job is."""
    running = [entry for entry in read_manifest(manifest) if entry.state == "running"]
    return [entry for entry in running if (how_far(Path(entry.mask)) or (0, 0))[1] > 0]


def job_of(pid: int) -> str | None:
    """The job a process belongs to."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    return dict(v.decode().partition("=")[::2] for v in variables if v).get("SLURM_JOB_ID")


def cancel_one(manifest: Path) -> str | None:
    """Cancel the job of a tomogram that is half done; None where there is none."""
    for entry in at_work(manifest) if manifest.exists() else ():
        job = job_of(entry.pid or 0)
        if job is not None:
            subprocess.run(["scancel", job], check=True)
            return job
    return None


@pytest.mark.slow
def test_a_cancelled_job_loses_nothing(
    slurm: Path, options: SegmentOptions, tmp_path: Path
) -> None:
    pytest.importorskip("dask_jobqueue")
    paths = write_tomograms(tmp_path, TOMOGRAMS)
    jobs = tmp_path / "slurm.toml"
    jobs.write_text(JOBS.format(folder=slurm))
    manifest = tmp_path / "out" / "etsam_manifest.jsonl"
    command = [sys.executable, "-c", "from etsam.cli import main; main()", "segment", *paths]
    command += ["-o", tmp_path / "out", "--model", options.model, "--device", "cpu"]
    command += ["--polarity", "dark", "--no-preview", "--engine", "slurm", "--workers", "2"]
    command += ["--engine-options", jobs, "--json"]
    cancelled: list[str] = []
    with (tmp_path / "log").open("w+") as log, (tmp_path / "done").open("w+") as done:
        batch = subprocess.Popen([str(word) for word in command], stdout=done, stderr=log)
        try:

            def over() -> bool:
                if not cancelled and (job := cancel_one(manifest)):
                    cancelled.append(job)
                return batch.poll() is not None

            wait_until(over, LIMIT, "the batch")
        finally:
            batch.kill()
            batch.wait()
        log.seek(0)
        assert batch.returncode == 0, log.read()
    assert cancelled
    assert len((tmp_path / "done").read_text().splitlines()) == TOMOGRAMS
    entries = read_manifest(manifest)
    assert [entry.state for entry in entries] == ["done"] * TOMOGRAMS
    assert len({entry.input for entry in entries}) == TOMOGRAMS
    assert sum(entry.attempts for entry in entries) == TOMOGRAMS + 1
    assert not list((tmp_path / "out").rglob("*.partial*"))
    wait_until(lambda: not asked("squeue", "-h"), PATIENCE, "the end of the jobs")
    for path in paths:
        alone = segment_file(path, replace(options, output=tmp_path / "alone"))
        assert alone.mask.read_bytes() == (tmp_path / "out" / alone.mask.name).read_bytes()
