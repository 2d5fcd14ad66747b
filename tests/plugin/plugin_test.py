r"""spank_symvirt.so and libsymvirt_hooks.so with real munged, slurmctld, slurmd, PMIx and Open MPI; guestd is a fake.

    sudo python3 tests/plugin/plugin_test.py --objects build/lib/symvirt --rank build/tests/symvirt_plugin_rank \
        --client build/tests/symvirt_pmix_client [NAME ...]

Two nodes in namespaces (testbed.py), no VM. Prints what it measures. --keep leaves the work folder.
"""

import argparse
import glob
import json
import os
import re
import shutil
import signal
import statistics
import sys
import threading
import time
import unittest

sys.path[:0] = [os.path.dirname(os.path.abspath(__file__)), os.path.dirname(os.path.abspath(__file__)) + "/../fakes"]
import testbed  # noqa: E402
from fake_guestd import CallError, FakeGuestd  # noqa: E402

parser = argparse.ArgumentParser()
parser.add_argument("--objects", required=True, help="folder of both shared objects")
parser.add_argument("--rank", required=True, help="the built rank.c")
parser.add_argument("--client", required=True, help="the built pmix_client.c")
parser.add_argument("--keep", action="store_true")
parser.add_argument("names", nargs="*", help="only tests whose name contains one of these")

# What job_submit.lua of a site would read; it tells the user, so that the test sees it.
LUA = """
function slurm_job_submit(job, partitions, uid)
  if type(job.spank_job_env) == "table" then
    for _, entry in pairs(job.spank_job_env) do slurm.log_user("LUA %s", entry) end
  end
  return slurm.SUCCESS
end
function slurm_job_modify(job, record, partitions, uid) return slurm.SUCCESS end
return slurm.SUCCESS
"""
PMIX = ("--mpi=pmix", "--time=1")

bed = None
options = None
guests = {}
figures = {}


def plugstack(*words):
    return f"optional {options.objects}/spank_symvirt.so {' '.join(words)}\n"


def start_guests():
    for node in bed.nodes:
        guests[node] = FakeGuestd(f"{bed.dir}/run-{node}/guestd.sock")
        guests[node].check_extra = {"network": ["10.78.0.0/24"], "quiesce": "tcp"}


def stop_guests():
    for guest in guests.values():
        guest.stop()
    guests.clear()


def thread_states(pid):
    states = []
    for path in glob.glob(f"/proc/{pid}/task/*/stat"):
        with open(path, encoding="utf-8", errors="replace") as f:
            states.append(f.read().rsplit(")", 1)[1].split()[0])
    return states


def everywhere(steps, method, params, timeout=15):
    """The same call to all steps at once: (results by step, seconds). Raises what a call raised."""
    results = [None] * len(steps)

    def one(i):
        try:
            results[i] = steps[i].call(method, params, timeout)
        except Exception as error:  # noqa: BLE001: handed to the caller's thread
            results[i] = error

    began = time.monotonic()
    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(steps))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - began
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results, seconds


def stop(pid):
    """SIGSTOP, and wait: until a thread has taken the signal the others run on."""
    os.kill(pid, signal.SIGSTOP)
    bed.wait(lambda: set(thread_states(pid)) == {"T"}, 5, "stopped process")


UNTIL = object()  # in a Run's command: until finish()


class Run:
    """A running srun of ranks with its registered steps and members."""

    def __init__(self, *command, nodes=2, tasks=4, members=None, srun=(), env=None):
        members = tasks if members is None else members
        used = bed.nodes[:nodes]
        self.until = f"{bed.dir}/out/until-{os.urandom(4).hex()}"
        command = [self.until if word is UNTIL else word for word in command]
        earlier = {node: guests[node].steps() for node in bed.nodes}
        self.process = bed.popen("srun", "--symvirt", *PMIX, f"-N{nodes}", f"-n{tasks}", "-w", ",".join(used),
            f"--ntasks-per-node={tasks // nodes}", *srun, *command, env=env)
        try:
            self.steps = [guests[node].wait_for_step(but=earlier[node])[0] for node in used]
            bed.wait(lambda: len(self.pids()) == members, 20, f"{members} members")
        except TimeoutError as error:
            self.process.kill()
            raise AssertionError(f"{error}\n{self.process.communicate()}") from error

    def pids(self):
        return {m["rank"]: m["pid"] for step in self.steps for m in step.call("step.members")["members"]}

    def quiesce(self, epoch, round_number=1, timeout_ms=10000, **more):
        results, seconds = everywhere(
            self.steps, "step.quiesce", {"epoch": epoch, "round": round_number, "timeout_ms": timeout_ms, **more}
        )
        return [a for r in results for a in r["answers"]], sum(r["held"] for r in results), seconds

    def resume(self, epoch, round_number=1):
        results, seconds = everywhere(
            self.steps, "step.resume", {"epoch": epoch, "round": round_number, "timeout_ms": 10000}
        )
        return [a for r in results for a in r["answers"]], seconds

    def finish(self, timeout=40):
        open(self.until, "w", encoding="utf-8").close()
        out, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, out, err


class Case(unittest.TestCase):
    def tearDown(self):
        """A job that a failed test left must not be in the way of the next one."""
        for job in testbed.output("squeue", "-h", "-o", "%i", env=bed.env).split():
            testbed.run("scancel", job, env=bed.env)
        bed.wait(lambda: not testbed.output("squeue", "-h", env=bed.env), 30, "end of all jobs")


class Commands(Case):
    """Options, their twins and what becomes of them before a job exists."""

    def setUp(self):
        bed.plugstack(plugstack())

    def lua_saw(self, *args, env=None):
        done = bed.as_user("sbatch", "--test-only", *args, "--wrap=true", env=env)
        # --test-only does not run job_submit; -H submits and holds.
        done = bed.as_user("sbatch", "-H", "--parsable", *args, "--wrap=true", env=env)
        self.assertEqual(done.returncode, 0, done.stderr)
        bed.as_user("scancel", done.stdout.strip())
        return set(re.findall(r"LUA (\S+)", done.stderr))

    def test_help_shows_the_options(self):
        for command in ("sbatch", "salloc", "srun"):
            text = bed.as_user(command, "--help").stdout
            for option in ("--symvirt=", "--no-symvirt", "--symvirt-ft=", "--symvirt-quiesce-timeout="):
                self.assertIn(option, text.replace("[=", "="), command)
            self.assertIn("[symvirt]", text)

    def test_bad_values_are_refused_in_the_users_words(self):
        cases = [
            (["--symvirt-ft=often", "--symvirt"], {}, "--symvirt-ft=often: valid are none and proactive"),
            (["--symvirt=a b"], {}, "--symvirt=a b: not the name of a VM class"),
            (["--symvirt", "--symvirt-quiesce-timeout=0"], {}, "--symvirt-quiesce-timeout=0: not a number"),
            (["--symvirt-ft=none"], {}, "--symvirt-ft: needs --symvirt"),
            ([], {"SYMVIRT": "a/b"}, "SYMVIRT=a/b: not the name of a VM class"),
            ([], {"SYMVIRT": "1", "SYMVIRT_FT": "x"}, "SYMVIRT_FT=x: valid are none and proactive"),
            (["--symvirt"], {"SYMVIRT_QUIESCE_TIMEOUT": "1h"}, "SYMVIRT_QUIESCE_TIMEOUT=1h: not a number"),
        ]
        for args, env, message in cases:
            for command in (["sbatch", *args, "--wrap=true"], ["salloc", *args, "true"], ["srun", *args, "true"]):
                with self.subTest(command=command, env=env):
                    done = bed.as_user(*command, env=env)
                    self.assertNotEqual(done.returncode, 0)
                    self.assertIn(f"{command[0]}: error: {message}", done.stderr)
        self.assertEqual(testbed.output("squeue", "-h", env=bed.env), "")

    def test_options_and_twins_reach_job_submit_alike(self):
        same = {"SYMVIRT=hca", "SYMVIRT_FT=none", "SYMVIRT_QUIESCE_TIMEOUT=9", "_SLURM_SPANK_OPTION_symvirt_symvirt=hca"}
        given = ["--symvirt=hca", "--symvirt-ft=none", "--symvirt-quiesce-timeout=9"]
        twins = {"SYMVIRT": "hca", "SYMVIRT_FT": "none", "SYMVIRT_QUIESCE_TIMEOUT": "9"}
        self.assertEqual(self.lua_saw(*given), same)
        self.assertEqual(self.lua_saw(env=twins), same)
        self.assertEqual(self.lua_saw(*given, env={"SYMVIRT": "other", "SYMVIRT_FT": "proactive"}), same)
        default = {"SYMVIRT=default", "SYMVIRT_FT=proactive", "_SLURM_SPANK_OPTION_symvirt_symvirt=default"}
        self.assertEqual(self.lua_saw("--symvirt"), default)
        self.assertEqual(self.lua_saw(env={"SYMVIRT": "1"}), default)
        for args, env in ((["--no-symvirt"], twins), ([], {"SYMVIRT": "0"}), (["--symvirt", "--no-symvirt"], {}), ([], {})):
            self.assertEqual(self.lua_saw(*args, env=env), set(), args)


class NotInAVm(Case):
    """No guestd: these nodes are bare hosts."""

    def setUp(self):
        bed.plugstack(plugstack())

    def test_a_symvirt_job_is_refused_and_the_node_stays_in_service(self):
        done = bed.as_user("srun", "--symvirt", "echo", "ran")
        self.assertEqual(done.returncode, 126, done.stderr)
        self.assertNotIn("ran", done.stdout)
        self.assertIn("task refused: this node is not a SymVirt VM", done.stderr)
        done, text = bed.sbatch_wait("--symvirt", script="echo ran\n")
        self.assertEqual(done.returncode, 126)
        self.assertNotIn("ran\n", text)
        self.assertIn("task refused: this node is not a SymVirt VM", text)
        self.assertNotIn("drain", testbed.output("sinfo", "-h", "-o", "%T", env=bed.env))

    def test_other_jobs_do_not_notice_us_even_with_broken_configuration(self):
        for configuration in (plugstack(), plugstack("nonsense", "guestd_socket=here")):
            bed.plugstack(configuration)
            done = bed.as_user("srun", "-N1", "-n2", *PMIX, options.rank_copy, "ring", "0.1")
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual(done.stderr.replace("\n", "").count("symvirt:"), 0, done.stderr)
            done, text = bed.sbatch_wait("--export=ALL", script="env; srun env\n", env={"SYMVIRT": "0"})
            self.assertEqual(done.returncode, 0)
            for word in ("LD_PRELOAD", "OMPI_MCA", "SLURM_PMIX_FENCE", "SLURM_SPANK_SYMVIRT"):
                self.assertNotIn(word, text)

    def test_broken_configuration_is_told_to_those_it_concerns(self):
        bed.plugstack(plugstack("nonsense=1"))
        done = bed.as_user("srun", "--symvirt", "echo", "ran")
        self.assertEqual(done.returncode, 126)
        self.assertIn("plugstack.conf: 'nonsense=1': unknown key", done.stderr)

    def test_optional_line_for_a_missing_plugin_is_harmless(self):
        bed.plugstack("optional /nowhere/spank_symvirt.so\n")
        self.assertEqual(bed.as_user("srun", "true").returncode, 0)


class InAVm(Case):
    @classmethod
    def setUpClass(cls):
        start_guests()

    @classmethod
    def tearDownClass(cls):
        stop_guests()

    def setUp(self):
        bed.plugstack(plugstack())
        self.epoch = int(time.monotonic() * 1000)

    def next_epoch(self):
        self.epoch += 1
        return self.epoch

    def assert_all_ok(self, run, ranks=4):
        status, out, err = run.finish()
        self.assertEqual(status, 0, out + err)
        self.assertEqual(len(re.findall(r"^ring rank .* ok$", out, re.M)), ranks, out + err)
        return out

    # --- before the ranks ---

    def test_unhealthy_vm_refuses_with_guestds_reason(self):
        guests["n1"].healthy, guests["n1"].reason = False, "slot fabric0: no carrier"
        try:
            done = bed.as_user("srun", "--symvirt", "-w", "n1", "echo", "ran")
        finally:
            guests["n1"].healthy = True
        self.assertEqual(done.returncode, 126)
        self.assertIn("this VM is not healthy: slot fabric0: no carrier", done.stderr)

    def test_environment_of_the_tasks_survives_export(self):
        script = "env > batch.env; srun env > step.env; OMPI_MCA_pml=cm srun --export=ALL env > own.env; srun --no-symvirt env > no.env\n"
        done, text = bed.sbatch_wait("--symvirt=hca", "--export=X=1,PATH", script=script)
        self.assertEqual(done.returncode, 0, text)

        def variables(name):
            with open(f"{bed.dir}/out/{name}.env", encoding="utf-8") as f:
                return dict(line.rstrip("\n").split("=", 1) for line in f if "=" in line)

        for name in ("batch", "step", "own"):
            env = variables(name)
            self.assertEqual(env.get("LD_PRELOAD"), f"{options.objects}/libsymvirt_hooks.so", name)
            self.assertEqual(env.get("SLURM_PMIX_FENCE"), "ring", name)
            self.assertEqual(env.get("OMPI_MCA_btl_tcp_if_include"), "10.78.0.0/24", name)
            self.assertEqual(env.get("OMPI_MCA_pml"), "cm" if name == "own" else "ob1", name)
            self.assertEqual(env.get("OMPI_MCA_btl"), "tcp,vader,self", name)
            self.assertEqual(env.get("SLURM_SPANK_SYMVIRT"), "hca", name)
        self.assertNotIn("SLURM_SPANK_SYMVIRT", variables("no"))

    def test_steps_inherit_and_cannot_contradict(self):
        done, text = bed.sbatch_wait("--no-symvirt", script="srun --symvirt echo ran\n", env={"SYMVIRT": "hca"})
        self.assertIn("--symvirt: the allocation was made without it", text)
        self.assertNotIn("ran\n", text)
        done, text = bed.sbatch_wait("--symvirt=hca", script="srun --symvirt=vf echo ran; srun --symvirt echo good\n")
        self.assertIn("--symvirt=vf: the allocation is of class hca", text)
        self.assertIn("good\n", text)
        self.assertNotIn("ran\n", text)
        script = "srun --no-symvirt sh -c 'srun --overlap --no-symvirt true; srun --overlap echo inner $SLURM_SPANK_SYMVIRT'\n"
        done, text = bed.sbatch_wait("--symvirt=hca", script=script)
        self.assertIn("inner\n", text)
        done = bed.as_user("salloc", "--symvirt", "srun", "sh", "-c", "echo $LD_PRELOAD")
        self.assertIn("libsymvirt_hooks.so", done.stdout)

    def test_new_tasks_wait_while_a_transaction_holds_them(self):
        guests["n1"].gate.clear()
        try:
            process = bed.popen("srun", "--symvirt", "-w", "n1", "echo", "ran")
            bed.wait(lambda: guests["n1"].seen("task.enter"), 10, "task.enter")
            time.sleep(0.5)
            self.assertIsNone(process.poll())
        finally:
            guests["n1"].gate.set()
        out, err = process.communicate(timeout=20)
        self.assertEqual((process.returncode, out), (0, "ran\n"), err)

    def test_gate_has_a_deadline(self):
        bed.plugstack(plugstack("enter_timeout=1"))
        guests["n1"].gate.clear()
        try:
            done = bed.as_user("srun", "--symvirt", "-w", "n1", "echo", "ran")
        finally:
            guests["n1"].gate.set()
        self.assertEqual(done.returncode, 126)
        self.assertIn("the job is being moved, and the step could not start within 1 s", done.stderr)

    # --- ranks ---

    def quiesce_again_and_again(self, run, times, pause, ranks):
        quiesce, resume = [], []
        for i in range(times):
            epoch = self.next_epoch()
            pids = run.pids()
            answers, held, seconds = run.quiesce(epoch)
            quiesce.append(seconds)
            self.assertEqual(sorted(a["rank"] for a in answers), list(range(ranks)))
            self.assertEqual({a["state"] for a in answers}, {"rest"})
            self.assertEqual({a["rank"]: a["pid"] for a in answers}, pids)
            self.assertEqual(held, ranks)
            for pid in pids.values():
                self.assertEqual(set(thread_states(pid)), {"T"})
            if i % 5 == 0:  # the second round of TCP: nothing changes, all stay held
                answers, held, _ = run.quiesce(epoch, 2)
                self.assertEqual((held, {a["state"] for a in answers}), (ranks, {"rest"}))
            time.sleep(pause)
            answers, seconds = run.resume(epoch)
            resume.append(seconds)
            self.assertEqual({a["state"] for a in answers}, {"done"})
            self.assertEqual(len(answers), ranks)
            for pid in pids.values():
                self.assertNotIn("T", thread_states(pid))
            time.sleep(0.05)
        return quiesce, resume

    def test_ring_goes_on_through_twenty_holds(self):
        run = Run(options.rank_copy, "ring", UNTIL)
        # Proof of the path: the ranks talk over the fabric, not over the management network.
        def sockets_of_ranks():
            lines = testbed.output("nsenter", "-t", str(run.pids()[0]), "-n", "ss", "-tnp").splitlines()
            return "\n".join(line for line in lines if '"rank"' in line and "127.0.0.1" not in line)

        bed.wait(lambda: re.search(r"10\.78\.0\.101:\d+ +10\.78\.0\.102:", sockets_of_ranks()), 5, "fabric connection")
        self.assertNotIn("10.77.", sockets_of_ranks())
        quiesce, resume = self.quiesce_again_and_again(run, 20, 0.05, 4)
        self.assert_all_ok(run)
        # mpi.conf says tree; what the plugin set in slurmstepd counts.
        step = f"[{run.steps[0].registered['job']}.0]"
        with open(f"{bed.dir}/slurmd-n1.log", encoding="utf-8", errors="replace") as f:
            fences = {kind for line in f if step in line for kind in re.findall("COLL_FENCE_[A-Z]+", line)}
        self.assertEqual(fences, {"COLL_FENCE_RING"})
        figures["quiesce to held, 2 nodes x 2 ranks, busy ring"] = quiesce
        figures["resume, 2 nodes x 2 ranks"] = resume

    def test_times_of_a_step(self):
        for ranks in (2, 8):
            run = Run(options.rank_copy, "spin", UNTIL, nodes=1, tasks=ranks)
            quiesce, resume = self.quiesce_again_and_again(run, 20, 0.01, ranks)
            status, out, err = run.finish()
            self.assertEqual(status, 0, out + err)
            figures[f"quiesce to held, 1 node, {ranks} ranks that compute"] = quiesce
            figures[f"resume, 1 node, {ranks} ranks that compute"] = resume

    def test_forking_ranks_and_threads(self):
        for mode in ("fork", "threads"):
            run = Run(options.rank_copy, mode, UNTIL)
            self.quiesce_again_and_again(run, 8, 0.02, 4)
            self.assert_all_ok(run)

    def test_a_rank_that_ends_during_a_quiesce_has_left(self):
        run = Run(options.rank_copy, "spin", UNTIL, nodes=1, tasks=2)
        pids = run.pids()
        stop(pids[0])  # so that it cannot answer
        result = []
        thread = threading.Thread(target=lambda: result.append(run.quiesce(self.next_epoch())))
        thread.start()
        bed.wait(lambda: "T" in thread_states(pids[1]), 5, "rank 1 to be held")
        self.assertEqual(result, [])
        os.kill(pids[0], signal.SIGKILL)
        thread.join(10)
        self.assertEqual(len(result), 1)
        states = {a["rank"]: a["state"] for a in result[0][0]}
        self.assertEqual(states[0], "left")
        self.assertIn(states[1], ("rest", "left"))  # Slurm kills the step of a dead PMIx client
        run.process.kill()
        run.finish()

    def test_exit_without_finalize_is_no_member_any_more(self):
        run = Run(options.rank_copy, "leave", "2", nodes=1, tasks=2)
        bed.wait(lambda: 0 not in run.pids(), 5, "rank 0 to leave")
        run.process.kill()
        run.finish()

    def test_deadline_names_the_rank_that_does_not_answer(self):
        run = Run(options.rank_copy, "spin", UNTIL, nodes=1, tasks=2)
        pids = run.pids()
        stop(pids[1])
        epoch = self.next_epoch()
        with self.assertRaisesRegex(CallError, rf"DEADLINE.*rank 1 \(pid {pids[1]}\)"):
            run.quiesce(epoch, timeout_ms=500)
        os.kill(pids[1], signal.SIGCONT)
        answers, _ = run.resume(epoch)
        self.assertEqual({a["state"] for a in answers}, {"done"})
        self.assertNotIn("T", thread_states(pids[0]) + thread_states(pids[1]))
        self.assertEqual(run.finish()[0], 0)

    def test_lives_of_a_pmix_client(self):
        for mode, held in (("cycle", 1), ("fork", 1)):
            run = Run(options.client, mode, "1.5", nodes=1, tasks=1)
            (pid,) = run.pids().values()
            _, count, _ = run.quiesce(self.next_epoch())
            self.assertEqual((count, set(thread_states(pid))), (held, {"T"}), mode)
            run.resume(self.epoch)
            status, out, err = run.finish()
            self.assertEqual(status, 0, f"{mode}: {out}{err}")
            self.assertIn(f"pid {pid} ready", out)

    def test_two_processes_of_one_rank(self):
        """PMIx gives an event to one process of a rank only; each is brought to rest all the same."""
        run = Run("bash", "-c", f"for i in 1 2 3; do {options.client} cycle 3 & done; wait", nodes=1, tasks=1, members=1)
        (step,) = run.steps
        members = lambda: sorted(m["pid"] for m in step.call("step.members")["members"])
        bed.wait(lambda: len(members()) == 3, 10, "three members")
        for _ in range(2):
            answers, held, _ = run.quiesce(self.next_epoch())
            self.assertEqual((sorted(a["pid"] for a in answers), held), (members(), 3))
            for pid in members():
                self.assertEqual(set(thread_states(pid)), {"T"})
            answers, _ = run.resume(self.epoch)
            self.assertEqual([(a["rank"], a["state"]) for a in answers], [(0, "done")] * 3)
        status, out, err = run.finish()
        self.assertEqual((status, out.count("done")), (0, 3), out + err)

    def test_program_that_replaced_a_member_is_named_at_the_deadline(self):
        run = Run(options.client, "exec", "1.5", nodes=1, tasks=1)
        time.sleep(0.2)
        with self.assertRaisesRegex(CallError, "DEADLINE.*rank 0"):
            run.quiesce(self.next_epoch(), timeout_ms=300)

    def test_process_that_left_the_step_is_no_member(self):
        script = f"(setsid {options.client} cycle 1 &) ; sleep 2"
        run = Run("bash", "-c", script, nodes=1, tasks=1, members=0)
        log = f"{bed.dir}/slurmd-n1.log"
        refusal = f"[{run.steps[0].registered['job']}.0] symvirt: HELLO refused: rank 0"
        bed.wait(lambda: refusal in open(log, encoding="utf-8", errors="replace").read(), 10, "refusal in the log")
        answers, held, _ = run.quiesce(self.next_epoch())
        self.assertEqual((answers, held), ([], 0))
        self.assertEqual(run.finish()[0], 0)

    def test_exit_in_the_middle_of_a_hold_takes_nobody_down(self):
        run = Run(options.client, "quit", "0.6", nodes=1, tasks=2)
        run.quiesce(self.next_epoch())
        time.sleep(0.8)
        run.resume(self.epoch)
        bed.wait(lambda: run.process.poll() is not None, 10, "end of the step")

    def test_ranks_that_never_call_mpi(self):
        for arguments in (["--mpi=pmix"], ["--mpi=none"]):
            run = Run("sleep", "2", tasks=2, members=0, srun=arguments)
            answers, held, _ = run.quiesce(self.next_epoch())
            self.assertEqual((answers, held), ([], 0))
            self.assertEqual(run.steps[0].registered["tasks"], 1)
            self.assertEqual(run.finish()[0], 0)

    def test_init_and_finalize_under_fire(self):
        """Quiesce and resume all the time while ranks start, finalize and end: nobody hangs, nothing is wrong."""
        stop = threading.Event()
        counts = {"rounds": 0, "left": 0, "held": 0}

        def fire():
            while not stop.is_set():
                steps = [step for guest in list(guests.values()) for step in guest.steps()]
                if not steps:
                    time.sleep(0.002)
                    continue
                params = {"epoch": self.next_epoch(), "round": 1, "timeout_ms": 8000}
                try:
                    results, _ = everywhere(steps, "step.quiesce", params)
                    counts["left"] += sum(a["state"] == "left" for r in results for a in r["answers"])
                    counts["held"] += sum(r["held"] for r in results)
                except TimeoutError:
                    pass  # the step ended meanwhile
                try:
                    everywhere(steps, "step.resume", params)
                except TimeoutError:
                    pass
                counts["rounds"] += 1
                time.sleep(0.003)

        thread = threading.Thread(target=fire)
        thread.start()
        try:
            for _ in range(5):
                done = bed.as_user("srun", "--symvirt", *PMIX, "-N2", "-n4", options.rank_copy, "ring", "0.2")
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
                self.assertEqual(done.stdout.count(" ok"), 4, done.stdout)
        finally:
            stop.set()
            thread.join(30)
        self.assertGreater(counts["rounds"], 10)
        self.assertGreater(counts["held"], 10)
        print(f"  under fire: {counts}")

    def test_guestd_restarted_while_ranks_are_held(self):
        run = Run(options.rank_copy, "ring", UNTIL)
        epoch = self.next_epoch()
        run.quiesce(epoch)
        pids = run.pids()
        for guest in guests.values():
            guest.stop()
        time.sleep(0.3)
        for pid in pids.values():
            self.assertEqual(set(thread_states(pid)), {"T"})
        for guest in guests.values():
            guest.epoch, guest.at_rest = epoch, True
            guest.start()
        run.steps = [guests[node].wait_for_step()[0] for node in bed.nodes]
        for guest in guests.values():
            guest.at_rest = False
        for step in run.steps:
            self.assertEqual(step.registered["epoch_at_rest"], epoch)
        run.resume(epoch)
        self.assert_all_ok(run)

    def test_broken_messages_of_guestd_do_no_harm(self):
        run = Run(options.rank_copy, "ring", UNTIL)
        for step in run.steps:
            step.send_raw(b'garbage\n{"id":1}\n\n[]\n\xff\xfe\n')
            with self.assertRaisesRegex(CallError, "INVALID_ARGUMENT.*'epoch'"):
                step.call("step.quiesce", {"round": 1, "timeout_ms": 10})
            with self.assertRaisesRegex(CallError, "unknown"):
                step.call("step.explode")
        self.assert_all_ok(run)

    def test_held_job_can_be_cancelled(self):
        run = Run(options.rank_copy, "ring", UNTIL)
        run.quiesce(self.next_epoch())
        pids = run.pids()
        bed.as_user("scancel", str(run.steps[0].registered["job"]))
        run.finish()
        bed.wait(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids.values()), 10, "end of the ranks")

    def test_step_that_starts_while_the_job_is_at_rest_is_held(self):
        epoch = self.next_epoch()
        for guest in guests.values():
            guest.epoch, guest.at_rest = epoch, True
        try:
            run = Run(options.rank_copy, "spin", UNTIL, nodes=1, tasks=2)
        finally:
            for guest in guests.values():
                guest.at_rest = False
        pids = run.pids()
        bed.wait(lambda: all(set(thread_states(p)) == {"T"} for p in pids.values()), 5, "newcomers to be held")
        run.resume(epoch)
        self.assertEqual(run.finish()[0], 0)

    def test_preloading_costs_other_programs_next_to_nothing(self):
        def seconds(env):
            best = []
            for _ in range(5):
                began = time.monotonic()
                for _ in range(50):
                    testbed.run("/bin/true", env=env)
                best.append((time.monotonic() - began) / 50)
            return min(best)

        plain = seconds({})
        preloaded = seconds({"LD_PRELOAD": f"{options.objects}/libsymvirt_hooks.so"})
        figures["cost of the preload, a process start"] = [preloaded - plain]
        self.assertLess(preloaded - plain, 0.003)


def select(suite, names):
    chosen = unittest.TestSuite()
    for case in suite:
        if isinstance(case, unittest.TestSuite):
            chosen.addTest(select(case, names))
        elif not names or any(name in case.id() for name in names):
            chosen.addTest(case)
    return chosen


def main():
    global bed, options
    options = parser.parse_args()
    options.objects = os.path.abspath(options.objects)
    testbed.enter()
    bed = testbed.Testbed(plugstack(), "JobSubmitPlugins=lua", LUA, fence="tree")
    options.rank_copy = f"{bed.dir}/rank"  # where the unprivileged user can reach it
    shutil.copy(options.rank, options.rank_copy)
    shutil.copy(options.client, f"{bed.dir}/client")
    options.client = f"{bed.dir}/client"
    os.makedirs(f"{bed.dir}/objects")
    for name in ("spank_symvirt.so", "libsymvirt_hooks.so"):
        shutil.copy(f"{options.objects}/{name}", f"{bed.dir}/objects/{name}")
    options.objects = f"{bed.dir}/objects"
    loader = unittest.TestLoader()
    loader.sortTestMethodsUsing = None  # as written
    suite = unittest.TestSuite(loader.loadTestsFromTestCase(c) for c in (Commands, NotInAVm, InAVm))
    result = unittest.TextTestRunner(verbosity=2, stream=sys.stdout).run(select(suite, options.names))
    bed.down()
    for name, values in figures.items():
        ms = sorted(1000 * v for v in values)
        print(f"  {name}: median {statistics.median(ms):.2f} ms, {ms[0]:.2f} to {ms[-1]:.2f} ({len(ms)})")
    if result.wasSuccessful() and not options.keep:
        shutil.rmtree(bed.dir)
    else:
        print(f"work folder with all logs: {bed.dir}; again: sudo {' '.join([sys.executable, *sys.argv])}")
    return 0 if result.wasSuccessful() and result.testsRun > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
