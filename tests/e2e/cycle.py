#!/usr/bin/env python3
"""Brings a job in one VM to rest and lets it go on, again and again, as symvirtd does in a move; the device stays where it is, but every
process closes it and opens it anew. For tests.

usage: cycle.py --vm VM --host HOST --job ID --epoch FIRST --cycles N [--until FILE] [--seed N] [--holders "CMD"] --call CMD...

CMD of --call calls one method of noded: CMD HOST PORT METHOD PARAMS SECONDS. At rest, in every tenth cycle, CMD of --holders must print
nothing: nobody holds the device. Ends after N cycles, or when FILE is there, and prints a line of JSON: cycles, rounds, median
times. Exit status 1 when a round fails, or does not end: what guestd says is printed.
"""
import argparse
import json
import os
import random
import shlex
import subprocess
import sys
import time

ROUNDS = 12
PORT = "6821"


class Guest:
    def __init__(self, args):
        self.args = args
        self.generation = json.loads(self.call("host.info", {}))["generation"]
        self.payloads = {}

    def call(self, method, params):
        done = subprocess.run([*self.args.call, self.args.host, PORT, method, json.dumps(params), "40"], capture_output=True, text=True, timeout=60)
        if done.returncode != 0:
            raise RuntimeError(f"{method}: {done.stderr.strip().splitlines()[-1:]}")
        return done.stdout

    def round(self, method, epoch, number, **more):
        params = {"job": self.args.job, "epoch": epoch, "round": number, "timeout_ms": 30000, "payloads": self.payloads, **more}
        answer = json.loads(self.call("guest.call", {"gen": self.generation, "vm": self.args.vm, "method": method, "params": params,
                                                     "op": f"cycle/{self.args.job}/{epoch}/{method}/{number}"}))
        self.payloads = {f"{self.args.job}.{a['step']}.{a['rank']}.{a['pid']}": a["payload"] for a in answer["answers"] if "payload" in a}
        return answer

    def rounds(self, method, epoch, **more):
        for number in range(1, ROUNDS + 1):
            answer = self.round(method, epoch, number, **more)
            if not answer["more"]:
                return number, answer
        raise RuntimeError(f"{method}: no end after {ROUNDS} rounds: {answer.get('waits')}: {answer}")


def holders(command):
    found = subprocess.run(shlex.split(command), capture_output=True, text=True, timeout=60, check=True)
    if found.stdout.strip():
        raise RuntimeError(f"somebody holds the device of a job at rest: {found.stdout}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--vm", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--job", type=int, required=True)
    parser.add_argument("--epoch", type=int, required=True, help="far above symvirtd's: those of this job are ours from now on")
    parser.add_argument("--cycles", type=int, required=True)
    parser.add_argument("--until")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--holders")
    parser.add_argument("--call", nargs=argparse.REMAINDER, required=True)
    args = parser.parse_args()
    moments = random.Random(args.seed)
    guest = Guest(args)
    quiesce_rounds, resume_rounds, members, drain, rebuild = [], [], [], [], []
    for epoch in range(args.epoch, args.epoch + args.cycles):
        time.sleep(moments.uniform(0, 0.5))
        if args.until and os.path.exists(args.until):
            break
        begun = time.monotonic()
        rounds, answer = guest.rounds("job.quiesce", epoch, lease_ms=60000)
        quiesce_rounds.append(rounds)
        members.append(answer["members"])
        drain.append(time.monotonic() - begun)
        if args.holders and epoch % 10 == 0:
            holders(args.holders)
        begun = time.monotonic()
        resume_rounds.append(guest.rounds("job.resume", epoch)[0])
        rebuild.append(time.monotonic() - begun)
        guest.payloads = {}
    median = lambda values: sorted(values)[len(values) // 2]
    print(json.dumps({"schema_version": 1, "cycles": len(members), "most_quiesce_rounds": max(quiesce_rounds),
                      "most_resume_rounds": max(resume_rounds), "with_members": sum(count > 0 for count in members),
                      "quiesce_s": round(median(drain), 3), "resume_s": round(median(rebuild), 3)}))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RuntimeError as error:
        print(f"cycle: {error}", file=sys.stderr)
        sys.exit(1)
