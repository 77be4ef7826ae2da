"""Worker processes that are timed alternately: each library runs in its own process, and only one works at a time.

A worker is started with a job, and sends a message when it is ready. Then each line on its standard input names a
method to call, and each line that it writes is the answer. Between two requests a worker is idle.
"""

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Pause before each measurement, in seconds, in which spinning threads of the previous worker go to sleep: those of
# OpenBLAS after up to 103 ms.
REST = 0.12


def cores(n):
    """Return `n` CPUs that this process may use, each on a physical core of its own."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    own, taken = [], set()
    for cpu in sorted(os.sched_getaffinity(0)):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        core = siblings.read_text() if siblings.exists() else str(cpu)
        if core not in taken:
            own.append(cpu)
            taken.add(core)
    if len(own) < n:
        raise SystemExit(f"{n} threads need {n} cores; this process may use {len(own)}.")
    return own[-n:]


def environment(threads):
    """Return the environment variables of a process that computes on this number of threads."""
    foreign = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "XLA_FLAGS", "NUMBA_NUM_THREADS")
    env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    for name in ("OMP", "MKL", "OPENBLAS", "NUMBA"):
        env[f"{name}_NUM_THREADS"] = str(threads)
    # The threads of Intel's OpenMP spin for 200 ms after a parallel region, longer than the pause between measurements.
    env |= {"KMP_BLOCKTIME": "20", "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    if threads == 1:
        env["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    env["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parent), *filter(None, [env.get("PYTHONPATH")])])
    return env


class Failed(Exception):
    """A worker failed to answer a request; the message contains the reason."""


class Worker:
    """A contestant in its own process.

    Parameters
    ----------
    script : path-like
        Script that is started as ``python script --worker JOB`` and calls `serve`.
    job : dict
        Arguments of the contestant, with the number of threads as `threads`; `cores` is added.
    loud : bool, default=False
        Whether the standard error of the process is shown.
    """

    def __init__(self, script, job, loud=False):
        job = {**job, "cores": cores(job["threads"])}
        self._process = subprocess.Popen(
            [sys.executable, str(script), "--worker", json.dumps(job)], text=True, env=environment(job["threads"]),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None if loud else subprocess.DEVNULL,
        )  # fmt: skip

    def answer(self, timeout=600):
        """Wait for the answer to the last request. The first answer means that the worker is ready."""
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            raise Failed(f"no answer in {timeout} s")
        line = self._process.stdout.readline()
        if not line:
            raise Failed(f"the process ended with code {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer["value"]

    def ask(self, method, *args):
        """Call a method of the contestant and return its result."""
        try:
            self._process.stdin.write(json.dumps([method, *args]) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # `answer` reports how the process ended
        return self.answer()

    def close(self):
        """Kill the process."""
        self._process.kill()
        self._process.communicate()


def serve(job, make):
    """Run a worker: create a contestant, then answer the requests on standard input, one per line."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # so that text printed by a library is not mistaken for an answer
    if job["cores"]:
        os.sched_setaffinity(0, job["cores"])

    def answer(call):
        try:
            reply = {"value": call()}
        except Exception as error:
            text = " ".join(str(error).split())
            reply = {"error": f"{type(error).__name__}: {text[:200]}"}
        channel.write(json.dumps(reply) + "\n")
        channel.flush()
        return "value" in reply

    made = []
    if answer(lambda: made.append(make(job))):
        for line in sys.stdin:
            method, *args = json.loads(line)
            answer(lambda method=method, args=args: getattr(made[0], method)(*args))


def in_turns(workers, rounds, method, say):
    """Call a method of all workers, one after the other, in each of `rounds` rounds, and return their answers.

    A worker that fails is closed and removed from `workers`; its answer is the exception.
    """
    answers = {name: [] for name in workers}
    for turn in range(rounds):
        if rounds > 1:
            say(f"round {turn + 1} of {rounds}")
        names = list(workers)
        first = turn % max(1, len(names))
        for name in names[first:] + names[:first]:
            time.sleep(REST)
            try:
                answers[name].append(workers[name].ask(*method))
            except Failed as failure:
                answers[name] = failure
                workers.pop(name).close()
    return answers


def start(workers, say):
    """Wait until all workers are ready; return the exceptions of those that failed."""
    failed = {}
    for name, worker in list(workers.items()):
        try:
            worker.answer()
            say(f"{name} is ready")
        except Failed as failure:
            failed[name] = failure
            workers.pop(name).close()
    return failed


def sayer(prefix):
    """Return a function that prints a line about the progress to standard error."""
    return lambda text: print(f"{time.strftime('%H:%M:%S')} {prefix}: {text}", file=sys.stderr, flush=True)
