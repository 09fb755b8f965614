"""The six orders of the demo on a real Slurm of one node, with jobs preempted in the middle.

    python tests/slurm/run.py

As root, on Debian or Ubuntu; installs slurm-wlm and munge where they are missing. Runs the sweep
on this machine, then on Slurm through conf/hydra/launcher/slurm_gpu.yaml with a cache of its own.
There, jobs that have a stage under way are requeued, in turn as by a scheduler that preempts them
and as by their time limit. Both sweeps must end in the same results, and no job may have waited
for another one's stage. The daemons are stopped and all files removed at the end.
"""

import argparse
import itertools
import os
import sys
import tempfile
import time
from pathlib import Path

from cluster import PARTITION, Cluster

sys.path.insert(0, str(Path(__file__).parents[1]))
import small_sweeps as sweeps

# Epochs enough that most preemptions come upon a stage under way.
EPOCHS = ("baseline.epochs=12", "prune.epochs=6", "quantize.epochs=6", "distill.epochs=6")
SWEEP = (sweeps.SIX, *EPOCHS)
LAUNCHER = (
    "hydra/launcher=slurm_gpu",
    f"hydra.launcher.partition={PARTITION}",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.mem_gb=null",  # the node does not divide its memory
)
# SIGTERM, then SIGKILL; and the signal before a time limit, on which submitit requeues the job.
PREEMPTIONS = (("scontrol", "requeue"), ("scancel", "--signal=USR2"))


def preempt(cluster, sweep, logs, times, pause):
    """Requeues running jobs while the sweep runs; returns how often it came to that."""
    ways = itertools.cycle(PREEMPTIONS)
    way, done = next(ways), 0
    read = {}  # lines of a job's log when it was last requeued
    while done < times and sweep.poll() is None:
        job = busy_job(cluster, logs, read)
        if job and requeue(cluster, job, way):
            print(f"{' '.join(way)} {job}", flush=True)
            read[job] = len(lines(logs, job))
            way, done = next(ways), done + 1
            time.sleep(pause)
        time.sleep(0.1)
    return done


def lines(logs, job):
    """What a job has printed, in all its starts."""
    path = logs / job / f"{job}_0_log.out"
    return path.read_text().splitlines() if path.exists() else []


def busy_job(cluster, logs, read):
    """A job in the middle of a stage: the longest-running not yet requeued twice.

    A job that is only starting does not count: the signal would end it, for good.
    """
    running = {
        job: fields["RunTime"]
        for job, fields in cluster.jobs().items()
        if fields["JobState"] == "RUNNING" and int(fields["Restarts"]) < 2
        if len(printed := lines(logs, job)) > read.get(job, 0)
        if " epoch " in printed[-1] and not printed[-1].endswith("done")
    }
    return max(running, key=running.__getitem__, default=None)


def requeue(cluster, job, way):
    """Disturbs a job until it is requeued; False if it ended before."""
    restarts = cluster.jobs()[job]["Restarts"]
    while cluster.jobs()[job]["JobState"] == "RUNNING":
        cluster.ask(*way, job)
        for _ in range(20):
            if cluster.jobs()[job]["Restarts"] != restarts:
                return True
            time.sleep(0.2)
    return False


def check(local, slurm, preempted, jobs):
    """Compares the two sweeps."""
    assert sweeps.figures(slurm / "sweep") == sweeps.figures(local / "sweep")
    assert sweeps.damaged_files(slurm / "sweep") == []
    assert sweeps.entries(slurm / "cache") == sweeps.entries(local / "cache")
    assert sweeps.leftovers(slurm) == []
    states = {job: fields["JobState"] for job, fields in jobs.items()}
    assert set(states.values()) == {"COMPLETED"}, states
    logs = [path.read_text() for path in (slurm / "sweep" / ".submitit").rglob("*.out")]
    waits = [line for log in logs for line in log.splitlines() if "waiting for its" in line]
    assert not waits, f"a job waited for another one's stage: {waits}"
    trained, needed = (
        sum(map(sweeps.epochs_trained, logs)),
        sweeps.epochs_trained((local / "sweep.log").read_text()),
    )
    # A job is killed within an epoch, which is then repeated, or once its checkpoint is written and
    # before it is printed.
    unlike = f"{trained} epochs for {needed}, {preempted} preemptions"
    assert needed - preempted <= trained <= needed + preempted, unlike
    return trained - needed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preemptions", type=int, default=6)
    parser.add_argument("--pause", type=float, default=5, help="seconds between two of them")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pqd-slurm-") as name:
        folder = Path(name)
        local, slurm, state = folder / "local", folder / "slurm", folder / "cluster"
        state.mkdir()
        begun = time.monotonic()
        sweeps.finish(sweeps.start(local, *SWEEP), local)
        print(f"on this machine: {time.monotonic() - begun:.0f} s", flush=True)
        with Cluster(state, os.cpu_count()) as cluster:
            begun = time.monotonic()
            process = sweeps.start(slurm, *SWEEP, *LAUNCHER)
            try:
                logs = slurm / "sweep" / ".submitit"
                preempted = preempt(cluster, process, logs, given.preemptions, given.pause)
                sweeps.finish(process, slurm)
            finally:
                process.kill()
            print(f"on Slurm: {time.monotonic() - begun:.0f} s", flush=True)
            cluster.drain()
            jobs = cluster.jobs()
        repeated = check(local, slurm, preempted, jobs)
    print(f"{len(jobs)} jobs, {preempted} preemptions, {repeated:+} epochs: no difference")


if __name__ == "__main__":
    main()
