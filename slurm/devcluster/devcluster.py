#!/usr/bin/env python3
"""A SLURM cluster on this one machine, to try flgbench on: simulated nodes, fake GPUs, real scheduler and accounting.

    devcluster.py start [FOLDER]    as root where packages are missing (Debian, Ubuntu); then `. FOLDER/env`
    devcluster.py stop [FOLDER]     cancels jobs, ends the daemons, keeps the logs

FOLDER holds all state (default /tmp/flgbench-devcluster). Needs no systemd and no cgroups; nothing outside FOLDER changes,
except for packages and names of nodes in /etc/hosts.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from getpass import getuser
from pathlib import Path

PACKAGES = ("munge", "slurmctld", "slurmd", "slurm-client", "slurmdbd", "mariadb-server-core")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "slurmdbd", "mariadbd")
NODES, CPUS, GPUS, MEMORY = 2, 2, 2, 8000  # memory in MB; a node's claims are not checked against the machine
PORT = int(os.environ.get("FLGBENCH_SLURM_PORT", "17800"))  # the first of 12

SLURM_CONF = """
ClusterName=flgbench
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
MailProg=/bin/true
# Accounting: submitit and `flgbench status` read how jobs ended from sacct. The last line is munge's socket.
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port_dbd}
AccountingStoragePass={folder}/munge/socket
AccountingStorageTRES=gres/gpu
# Binding and cgroups need rights that a container may lack.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
PropagateResourceLimits=NONE
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
DefMemPerCPU=100
GresTypes=gpu
# Jobs of `urgent` preempt those of `debug`: these get their signal, and are requeued.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
# A test does not wait as long as a real cluster does.
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
KillWait=5
SlurmdTimeout=20
ReturnToService=2
# Job ids of an earlier cluster must not come back: logs and results are kept under them.
FirstJobId={first_job}
NodeName=flgdev[1-{nodes}] NodeAddr=127.0.0.1 NodeHostname={host} Port={port_first}-{port_last} \
CPUs={cpus} RealMemory={memory} Gres=gpu:fake:{gpus}
PartitionName=debug Nodes=ALL Default=YES PriorityTier=1 GraceTime=10
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""

SLURMDBD_CONF = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port_dbd}
SlurmUser={user}
PidFile={folder}/run/slurmdbd.pid
LogFile={folder}/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser={user}
StorageLoc=slurm_accounting
"""


def shell(*command: str, **environment: str) -> str:
    """Run a command; a failure ends this program with what the command said."""
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    if done.returncode != 0:
        sys.exit(f"devcluster: {' '.join(command)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def wait_until(what: str, true: Callable[[], bool], seconds: float = 40) -> None:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            sys.exit(f"devcluster: {what} after {seconds:.0f} s")
        time.sleep(0.1)


def answers(*command: str) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0


def idle_nodes() -> int:
    found = subprocess.run(["sinfo", "-h", "-N", "-p", "debug", "-t", "idle", "-o", "%N"], capture_output=True, text=True)
    return len(found.stdout.split())


def install() -> None:
    """Debian's packages, where a program is missing."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        sys.exit(f"devcluster: {', '.join(missing)} not installed: run this once as root on Debian or Ubuntu")
    shell("apt-get", "update", "-q")
    options = ("install", "-q", "-y", "--no-install-recommends")
    shell("apt-get", *options, *PACKAGES, DEBIAN_FRONTEND="noninteractive")


def configure(folder: Path) -> None:
    """An empty folder becomes one with configuration files, a key and device files."""
    for name in ("munge", "run", "log", "spool", "state", "gpu", "database"):
        (folder / name).mkdir(parents=True)
    (folder / "database").chmod(0o700)
    values = {
        "folder": folder, "host": socket.gethostname().partition(".")[0], "user": getuser(),
        "port": PORT, "port_dbd": PORT + 1, "port_first": PORT + 2, "port_last": PORT + 1 + NODES,
        "nodes": NODES, "cpus": CPUS, "gpus": GPUS, "memory": MEMORY, "first_job": int(time.time()) % 60_000_000,
    }  # fmt: skip
    (folder / "slurm.conf").write_text(SLURM_CONF.format(**values))
    for name, text in (("slurmdbd.conf", SLURMDBD_CONF.format(**values)), ("munge/key", secrets.token_hex(64))):
        (folder / name).touch(mode=0o600)  # both daemons refuse a file that others can read
        (folder / name).write_text(text)
    for gpu in range(GPUS):
        (folder / "gpu" / f"fake{gpu}").symlink_to("/dev/null")  # SLURM wants a device file
    (folder / "gres.conf").write_text(f"Name=gpu Type=fake File={folder}/gpu/fake[0-{GPUS - 1}]\n")
    (folder / "env").write_text(f"export SLURM_CONF={folder}/slurm.conf\n")
    names = Path("/etc/hosts").read_text().split()
    unknown = [f"127.0.0.1 flgdev{n}\n" for n in range(1, NODES + 1) if f"flgdev{n}" not in names]
    if unknown and os.access("/etc/hosts", os.W_OK):
        with Path("/etc/hosts").open("a") as hosts:
            hosts.writelines(unknown)


def start(folder: Path) -> None:
    install()
    os.environ["SLURM_CONF"] = f"{folder}/slurm.conf"
    if (folder / "slurm.conf").exists():
        if answers("sacct", "-n") and idle_nodes() == NODES:
            print(f"already up: . {folder}/env")
            return
        stop(folder)
        shutil.rmtree(folder)
    elif folder.exists() and any(folder.iterdir()):
        sys.exit(f"devcluster: {folder} holds other things: give an empty folder")
    configure(folder)
    munge = folder / "munge"
    shell(
        "munged", f"--socket={munge}/socket", f"--key-file={munge}/key", f"--seed-file={munge}/seed",
        f"--pid-file={folder}/run/munged.pid", f"--log-file={folder}/log/munged.log",
    )  # fmt: skip
    database = folder / "database"
    with (folder / "log" / "mariadbd.log").open("w") as log:
        subprocess.Popen(
            ["mariadbd", "--no-defaults", f"--user={getuser()}", f"--datadir={database}", f"--socket={database}/socket",
             f"--pid-file={folder}/run/mariadbd.pid", "--skip-networking", "--skip-grant-tables",
             "--innodb-lock-wait-timeout=900"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    wait_until("no database", (database / "socket").exists)
    shell("slurmdbd", MYSQL_UNIX_PORT=f"{database}/socket")
    wait_until("slurmdbd is silent", lambda: answers("sacctmgr", "-n", "show", "cluster"))
    shell("slurmctld")
    wait_until("slurmctld is silent", lambda: answers("sinfo"))
    for n in range(1, NODES + 1):
        shell("slurmd", "-N", f"flgdev{n}")
    wait_until("the nodes are not idle", lambda: idle_nodes() == NODES and answers("sacct", "-n"))
    print(f"{NODES} nodes idle: . {folder}/env")


def process_of(pid_file: Path) -> int | None:
    """The daemon that a file in `run` is named after, if it lives: numbers of processes are used again."""
    try:
        pid = int(pid_file.read_text())
        command = Path(f"/proc/{pid}/comm").read_text().strip()
        os.readlink(f"/proc/{pid}/exe")  # a zombie has none
    except (OSError, ValueError):
        return None
    return pid if command == pid_file.stem.partition("-")[0] else None


def stop(folder: Path) -> None:
    os.environ["SLURM_CONF"] = f"{folder}/slurm.conf"
    if process_of(folder / "run" / "slurmctld.pid"):
        # Jobs would outlive the daemons.
        subprocess.run(["scancel", "--me"], capture_output=True)
        waiting = ["squeue", "-h", "--me"]
        end = time.monotonic() + 15
        while time.monotonic() < end and subprocess.run(waiting, capture_output=True).stdout.strip():
            time.sleep(0.2)
    nodes = sorted((folder / "run").glob("slurmd-*.pid"))
    # Each needs those that follow.
    for path in (*nodes, *(folder / "run" / f"{name}.pid" for name in ("slurmctld", "slurmdbd", "mariadbd", "munged"))):
        pid = process_of(path)
        end = time.monotonic() + 10
        if pid:
            os.kill(pid, signal.SIGTERM)
        while process_of(path) and time.monotonic() < end:
            time.sleep(0.1)
        if pid := process_of(path):
            os.kill(pid, signal.SIGKILL)
    print(f"stopped; logs in {folder}/log")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("start", "stop"))
    parser.add_argument("folder", nargs="?", type=Path, default=Path("/tmp/flgbench-devcluster"))
    arguments = parser.parse_args()
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    folder = arguments.folder.absolute()
    if len(str(folder)) > 80:
        sys.exit(f"devcluster: {folder}: too long for the sockets in it (80 characters)")
    (start if arguments.verb == "start" else stop)(folder)


if __name__ == "__main__":
    main()
