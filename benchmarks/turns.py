"""Processes that wait for their turn: each contestant in one of its own, so that they are timed alone.

A worker is started with a job and says when it is ready; then each line on its standard input is a method to call, and
each line that it writes is the answer.
"""

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Seconds between two turns, in which threads that still spin go to sleep.
REST = 0.05


def cores(n):
    """Return n cores that this process may use, no two of them threads of one core."""
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
    """Return the environment of a process that computes on so many threads."""
    foreign = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "XLA_FLAGS", "NUMBA_NUM_THREADS")
    env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    for name in ("OMP", "MKL", "OPENBLAS", "NUMBA"):
        env[f"{name}_NUM_THREADS"] = str(threads)
    # Intel's OpenMP keeps threads spinning for 200 ms after the last region: longer than the pause between turns.
    env |= {"KMP_BLOCKTIME": "20", "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    if threads == 1:
        env["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    env["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parent), *filter(None, [env.get("PYTHONPATH")])])
    return env


class Failed(Exception):
    """A worker could not do what it was asked for; the message says why."""


class Worker:
    """A contestant in a process of its own.

    Parameters
    ----------
    script : path-like
        Started as ``python script --worker JOB``; it calls `serve`.
    job : dict
        What it is to do; `threads` is set and `cores` is added.
    loud : bool
        Whether its standard error is shown.
    """

    def __init__(self, script, job, loud=False):
        job = {**job, "cores": cores(job["threads"])}
        self._process = subprocess.Popen(
            [sys.executable, str(script), "--worker", json.dumps(job)], text=True, env=environment(job["threads"]),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None if loud else subprocess.DEVNULL,
        )  # fmt: skip

    def answer(self, timeout=600):
        """Wait for the answer to the last request; the first one says that the worker is ready."""
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
        """Call a method of the contestant and return what it returns."""
        try:
            self._process.stdin.write(json.dumps([method, *args]) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # `answer` says how the process ended
        return self.answer()

    def close(self):
        """End the process."""
        self._process.kill()
        self._process.communicate()


def serve(job, make):
    """Be a worker: make a contestant, then do what each line of standard input asks for."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # so that nothing that a library prints is taken for an answer
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
    """Ask all workers in turn, `rounds` times, and return each one's answers.

    A worker that fails is closed and taken out of `workers`; its answer is the exception.
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
    """Wait until all workers are ready; return those that failed and why."""
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
    """Return a function that shows one line of progress on standard error."""
    return lambda text: print(f"{time.strftime('%H:%M:%S')} {prefix}: {text}", file=sys.stderr, flush=True)
