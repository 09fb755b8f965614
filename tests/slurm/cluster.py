"""A Slurm of one node on loopback, for tests: its daemons started by hand, as root."""

import os
import shutil
import socket
import subprocess
import time

PACKAGES = ("slurm-wlm", "munge")
PARTITION = "pqd"

# The node lies about its GPUs: they are counted, and nothing is done with them.
CONF = """
ClusterName=pqd
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
MinJobAge=86400
KillWait=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} Gres=gpu:{cpus} State=UNKNOWN
PartitionName={partition} Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Cluster:
    """Runs while the context lasts; `SLURM_CONF` then leads Slurm's commands to it.

    Args:
        folder: for keys, state and logs; empty, and readable by root alone.
        cpus: of the node; it claims to have as many GPUs.
    """

    def __init__(self, folder, cpus):
        self.folder, self.cpus = folder, cpus
        self.daemons = []

    def __enter__(self):
        install()
        (self.folder / "munge.key").write_bytes(os.urandom(1024))
        (self.folder / "munge.key").chmod(0o400)
        (self.folder / "state").mkdir()
        (self.folder / "spool").mkdir()
        host = socket.gethostname().split(".")[0]
        conf = CONF.format(
            folder=self.folder, cpus=self.cpus, host=host, partition=PARTITION, ports=free_ports()
        )
        (self.folder / "slurm.conf").write_text(conf)
        for gpu in range(self.cpus):
            (self.folder / f"gpu{gpu}").touch()
        (self.folder / "gres.conf").write_text(
            f"Name=gpu File={self.folder}/gpu[0-{self.cpus - 1}]\n"
        )
        os.environ["SLURM_CONF"] = str(self.folder / "slurm.conf")
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self):
        self._daemon(
            "munged",
            "--foreground",
            "--force",  # the folder may be below /tmp
            *(
                f"--{kind}-file={self.folder}/munge.{kind}"
                for kind in ("key", "pid", "seed", "log")
            ),
            f"--socket={self.folder}/munge.socket",
        )
        self._wait(lambda: (self.folder / "munge.socket").exists())
        self._daemon("slurmctld", "-D", "-c")
        self._daemon("slurmd", "-D", "-c")
        self._wait(lambda: "idle" in self.ask("sinfo", "--noheader", "--format=%T"))

    def __exit__(self, *_):
        if self.jobs():
            self.ask("scancel", "--user=root")
            self.drain()
        for daemon in reversed(self.daemons):
            daemon.terminate()
            daemon.wait()
        os.environ.pop("SLURM_CONF", None)

    def ask(self, *command):
        """Returns what one of Slurm's commands says; nothing if it fails."""
        return subprocess.run(command, capture_output=True, text=True).stdout

    def drain(self):
        """Waits until the queue is empty: a job that has written its result is still in it."""
        self._wait(lambda: not self.ask("squeue", "--noheader"))

    def jobs(self):
        """What Slurm knows of the jobs: their fields, by job or job_task."""
        jobs = {}
        for line in self.ask("scontrol", "show", "jobs", "--oneliner").splitlines():
            fields = dict(field.split("=", 1) for field in line.split() if "=" in field)
            if "JobId" in fields:
                task = fields.get("ArrayTaskId")
                name = f"{fields['ArrayJobId']}_{task}" if task else fields["JobId"]
                jobs[name] = fields
        return jobs

    def _daemon(self, name, *arguments):
        with (self.folder / f"{name}.out").open("w") as log:
            self.daemons.append(
                subprocess.Popen(
                    [shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin"), *arguments],
                    stdout=log,
                    stderr=log,
                )
            )

    def _wait(self, ready, seconds=60):
        end = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > end:
                logs = (p.read_text()[-2000:] for p in sorted(self.folder.glob("*.out")))
                raise TimeoutError("Slurm did not start or stop:\n" + "\n".join(logs))
            time.sleep(0.2)


def free_ports():
    """Two ports on which nobody listens, such as another of these clusters."""
    with socket.create_server(("", 0)) as first, socket.create_server(("", 0)) as second:
        return first.getsockname()[1], second.getsockname()[1]


def install():
    """Installs Slurm and munge from Debian, where they are missing."""
    if os.geteuid() != 0:
        raise SystemExit("Slurm's daemons are started as root here")
    path = f"{os.environ['PATH']}:/usr/sbin"
    if not all(shutil.which(name, path=path) for name in ("munged", "slurmctld", "slurmd")):
        quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update"], check=True, env=quiet)
        subprocess.run(["apt-get", "install", "--yes", *PACKAGES], check=True, env=quiet)
