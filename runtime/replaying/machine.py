"""The torch machine: a plan run on a real device, with the choices of sim.core and the time of a clock on the wall.

It is the third machine beside sim.machines.compiled and discrete, and reads like the latter: one host thread walks
through steps and layers, the link lands and commits beside it. What differs is where durations come from.

    draft           of speculative windows: as long as the plan says, before the first layer          -> draft
    dense part      kernels; then the router's ids are copied to the host, which waits for them   -> dense, decide
    routed          sim.core decides (under the port's lock), and commits: copies go onto the link
    experts         the GPU takes a group, runs it from its slots, the host waits for its end       -> experts
    stall           nothing is ready: the host waits until a landing makes something ready          -> stall
    end of layer    waits for experts computed on the CPU, beside the GPU                            -> cpu_wait
                    (runtime.replaying.host_work)
    end of step     final norm, LM head, the next tokens to the host                                 -> head

Every interval of the host's clock belongs to exactly one of these: the machine puts marks, and what lies between two
marks goes to one part (`lap`). The parts add up to the time because nothing else is ever measured. What the host does
between two kernels is in the part that the GPU waits in: that is what an engine pays. The dense part ends where its
kernels end, by the device's clock; reading back and deciding is `decide`.

A copy that has ended becomes a landing when the host learns of it (Port, "Landings"); that is its place in the order
of events. `landed_ns` is when it ended, unless something else stands between in that order. The next transfer is
committed at once, in the same hold of the lock. A slot is safe by events (runtime.experts.store); the core's hold on an
expert (WORK > 0) ends at its group's end. So are stages (runtime.replaying.stages), from which copies are executed that
are not kept. What an engine does on a miss (plan.OnMiss) the machine does, but for what `refuse` names.

Where time is simulated (runtime.device.virtual, given the plan's durations) this machine's record equals the compiled
machine's to the nanosecond, event by event: tests/test_device.py. So what it does on a device is the same policy code
in the same order, and only the durations are the device's.

The API, for what is built on it:

    port = device.choose.choose("cpu", link_gbps=5)           the device
    store = ExpertStore(port, Layout..., layers, n_experts, plan.slots, source, stages=stages_of(plan))
    work = CatalogWork(port, model, store, batches, ...)      or your own: runtime.replaying.work.Work
    record = Machine(plan, port, store, work).run()           a whole replay; Machine(...).start(), begin_step(step),
                                                              dense(step, layer), visit(step, layer), end_step(step) and
                                                              finish() are its pieces, for whoever drives the walk

    runtime.replaying.opened.Opened(port, settings, options)  the three from a sim.prepare.Setting, as a context manager
    runtime.replaying.replays.replay(setting, port, options)  -> list of RunRecord, one per repeat
"""

import gc
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import torch

from runtime.device.port import Declared, Event, Port
from runtime.device.worker import failing
from runtime.experts.store import ExpertStore
from runtime.replaying.host_work import HostWork
from runtime.replaying.order import END, GROUP, HOST, STEP, VISIT, Order
from runtime.replaying.shared_memory import SharedMemory
from runtime.replaying.stages import Stages, stages_of
from runtime.replaying.work import Job, Work, by_expert
from sim.core import state as st
from sim.core.hooks import explained
from sim.core.inputs import inputs
from sim.core.link import count_stall, land, next_commit, waiting, why_stalled
from sim.core.miss import REMOTE
from sim.core.plan import PLAIN, Plan
from sim.core.rules import NOBODY, behind
from sim.core.stages import end_visit
from sim.core.state import NEVER, IllegalTransition
from sim.core.substitution import ANSWER_CPU, ANSWER_DROP, ANSWER_LOW, ANSWER_SUBSTITUTE
from sim.core.visit import decide, finish_group, finish_host, take_group, visit_lasts
from sim.errors import SpecError
from sim.machines.clock import begin_run, busy, close, forget, last_place, reset
from sim.machines.record import RunRecord


class AsTheyCome:
    """The order of a free run."""

    def __init__(self, machine: "Machine") -> None:
        self.machine = machine

    def begin(self) -> None:
        self.machine.kick()

    def arrive(self, g: int, started_ns: int, landed_ns: int) -> None:
        self.machine.landed(g, started_ns, landed_ns)
        self.machine.kick()
        self.machine.port.notify()

    def turn(self, kind: int) -> None:
        """At once."""

    def done(self, kind: int) -> None:
        if kind != STEP:
            self.machine.kick()

    def begin_again(self) -> None:
        self.machine.kick()

    def take(self) -> int:
        return int(take_group(self.machine.s, self.machine.plan.group, self.machine.rules))


class Machine:
    """One run. order: how completions are ordered (default: as they come)."""

    def __init__(
        self,
        plan: Plan,
        port: Port,
        store: ExpertStore[Any],
        work: Work,
        order: Callable[["Machine"], Order] = AsTheyCome,
    ) -> None:
        """Raises SpecError for what only the simulated machines can do."""
        refuse(plan)
        self.plan, self.costs, self.port, self.store, self.work = plan, plan.costs, port, store, work
        self.on_miss = plan.on_miss or PLAIN
        self.s, found, self.clock, self.rules = begin_run(plan, True)
        assert found is not None
        self.log, self.n_full, self.stage_base = found, int(self.s.run.n_full), int(self.s.run.stage_base)
        self.route, self.miss, self.ahead, self.hooks = inputs(plan, self.s)
        low = plan.low or plan.costs
        # both by whether it is a low-precision copy
        self.expert_ns = (plan.costs.expert_ns.tolist(), low.expert_ns.tolist())
        self.transfer_ns = (plan.costs.transfer_ns.tolist(), low.transfer_ns.tolist())
        if store.stages < stages_of(plan):
            raise SpecError(f"stages: {store.stages}: of the store; the plan may fill {stages_of(plan)} at once")
        self.stages = Stages(store.first_stage, store.stages)
        self.host = HostWork(plan, port, store, work)
        self.shared = None  # how the host slows the link by the plan
        if plan.on_miss is not None and plan.on_miss.link_share != (1, 1):
            self.shared = SharedMemory(plan.on_miss, self.s)
        self.order: Order = order(self)
        self.commit_due = self.ended = False
        self.stalled_since = -1  # -1: the GPU does not stall
        self.cause = 0
        self.taken = 0
        self.layer = 0
        self.origin = self.mark = 0
        # of the device's clock, mapped to the host's: nothing in the record is earlier than what stands before it
        self.latest = self.link_free = 0
        self.counted_from = 0  # link time before the end of the warm-up counts for nothing
        self.copies: dict[int, Any] = {}
        self.row_of = np.zeros(plan.experts.shape[0], np.int64)

    # --- the clock -----------------------------------------------------------------------------------------------

    def now(self) -> int:
        """Nanoseconds since time 0."""
        return self.port.now_ns() - self.origin

    def lap(self, part: str, at: int | None = None) -> int:
        """What has passed since the last mark belongs to `part`; the new mark."""
        now = self.now() if at is None else min(max(at, self.mark), self.now())
        self.clock.spend(part, now - self.mark)
        self.mark = now
        return now

    # --- the link: all of it with the lock held --------------------------------------------------------------------

    def kick(self) -> None:
        """Something was queued, landed or released: the link may take more, before time goes on."""
        if not self.commit_due and waiting(self.s, self.rules):
            self.commit_due = True
            self.port.soon(self.commit)

    def commit(self) -> None:
        """Commit as much as the depth and the slots allow."""
        self.commit_due = False
        if self.ended:
            return
        s = self.s
        while waiting(s, self.rules):
            follows = int(s.link.n_flight > 0)
            g = int(next_commit(s, self.log, self.hooks, self.rules))
            if g < 0:
                return
            experts, place = self._brought(g), int(last_place(s))
            self.latest = self.now()
            for row in self._rows(experts, place, first=True):
                row.committed_ns = self.latest
            self.clock.starts[place] = NEVER
            gap = 0 if follows else self.costs.commit_gap_ns
            slots = [self._claimed(each) for each in experts]
            planned, part = self._planned_ns(g, place, follows, gap), self._part(place)
            self.copies[place] = self.store.fetch_together(experts, slots, self._observer(g), planned, gap, part)

    def _part(self, place: int) -> tuple[float, float] | None:
        """Of a chunk, at that place of State.flight, from which share of its expert's bytes to which it goes."""
        if self.rules is None or (part := self.rules.part[place]).number < 0:
            return None
        share = self.on_miss.chunk_bytes / self.plan.expert_bytes
        return part.number * share, 1.0 if part.last else (part.number + 1) * share

    def _rows(self, experts: Sequence[int], place: int, first: bool = False, last: bool = False) -> list[Any]:
        """Rows of the record that tell of what stands at a place of State.flight: of its chunk, and of its transfers
        where that is their first, or their last."""
        own = [self.log.transfers[self.s.expert[each].transfer] for each in experts]
        if self.rules is None or (part := self.rules.part[place]).number < 0:
            return own
        told = (first and part.number == 0) or (last and part.last == 1)
        return [self.log.chunks[part.row], *(own if told else [])]

    def _brought(self, g: int) -> list[int]:
        """The experts that a transfer brings; g: the first."""
        out = [g]
        while self.rules is not None and (g := int(behind(self.s, self.rules, g))) != NOBODY:
            out.append(g)
        return out

    def _claimed(self, g: int) -> int:
        """Where an expert that was committed goes: the slot that the core took for it, or a stage."""
        if g in self.stages.of:  # its first chunk did
            return self.stages.of[g]
        return self.stages.claim(g) if self.is_copy(g) else int(self.s.expert[g].slot)

    def _planned_ns(self, g: int, place: int, follows: int, gap_ns: int) -> int:
        """How long what was committed last, at that place of State.flight, lasts by the plan; g: its first expert."""
        if self.rules is not None and self.rules.part[place].number >= 0:
            ns = int(self.on_miss.chunk_ns[follows, self.rules.part[place].last])
        elif self.is_copy(g):
            assert self.rules is not None
            ns = int(self.on_miss.run_ns[follows, self.rules.visit.run])
        else:
            ns = self.transfer_ns[self.is_low(g)][follows]
        return ns if self.shared is None else self.shared.committed(place, ns, gap_ns, follows, self.latest)

    def is_low(self, g: int) -> bool:
        """Whether a global id is that of a low-precision copy."""
        return self.n_full <= g < self.stage_base

    def is_copy(self, g: int) -> bool:
        """Whether a global id is that of a copy in a stage."""
        return g >= self.stage_base

    def _give_back(self, ids: Sequence[int]) -> None:
        """The stages of these copies, as far as they have left them."""
        for g in ids:
            if self.is_copy(g) and self.s.expert[g].state == st.ABSENT:
                self.stages.give_back(g)

    def _observer(self, g: int) -> Callable[[int, int], None]:
        def ended(started_ns: int, landed_ns: int) -> None:
            with self.port.lock:
                if not self.ended:  # what lands after the run is nobody's
                    self.order.arrive(g, started_ns - self.origin, landed_ns - self.origin)

        return ended

    def landed(self, g: int, started_ns: int, landed_ns: int) -> None:
        """The oldest committed transfer, or chunk, has landed; g: its first expert."""
        s, experts, place = self.s, self._brought(g), int(self.s.link.flight_head)
        committed = int(self._rows(experts, place)[0].committed_ns)
        landed_ns = self.latest = max(min(landed_ns, self.now()), self.latest)
        started_ns = min(max(started_ns, committed, self.link_free), landed_ns)
        self.link_free = landed_ns
        if self.stalled_since >= 0:
            self._count_stall(max(self.now(), self.stalled_since), self._why())
        found = int(land(s, self.log, self.rules))
        if found != g:
            raise RuntimeError(f"expert {g} landed, but expert {found} was committed first")
        del self.copies[place]
        self.clock.starts[place], self.clock.lands[place] = started_ns, landed_ns
        busy(s, self.clock, self.rules, g, landed_ns - max(started_ns, self.counted_from))
        for row in self._rows(experts, place, first=True):
            row.started_ns = started_ns
        for row in self._rows(experts, place, last=True):
            row.landed_ns = landed_ns
        self._give_back(experts)

    def _why(self) -> int:
        """What the GPU waits for, as the link stands: a late expert, a slot, or a demand."""
        return int(why_stalled(self.s, self.rules))

    def _count_stall(self, now: int, cause: int) -> None:
        """What the GPU has waited for since it last looked."""
        ns, self.stalled_since, self.cause = now - self.stalled_since, now, cause
        count_stall(self.s, self.log, self.layer, cause, ns)

    # --- the walk --------------------------------------------------------------------------------------------------

    def run(self) -> RunRecord:
        """Every step, every layer. Raises DeviceError when the device fails; the caller closes the port."""
        layers = self.plan.experts.shape[1]
        collecting = gc.isenabled()
        with explained(self.plan, self.hooks), torch.inference_mode():
            self.start()
            gc.disable()
            try:
                for step in range(len(self.plan.step_prefill)):
                    self.begin_step(step)
                    for layer in range(layers):
                        self.dense(step, layer)
                        self.visit(step, layer)
                    self.end_step(step)
            except BaseException:
                self.ended = True  # what still lands commits nothing more
                raise
            finally:
                if collecting:
                    gc.enable()
            return self.finish()

    def start(self) -> None:
        """Time 0: the first residents are in their slots, every choice is compiled, nothing runs."""
        warm(self.plan)
        self.first = {int(g): int(self.s.expert[g].slot) for g in self.plan.residents}
        self.store.place(self.first)
        self.port.sync()
        self.origin, self.mark = self.port.now_ns(), 0
        with self.port.lock:
            self.order.begin()

    def begin_step(self, step: int) -> None:
        """A step begins where the last one ended."""
        self.clock.begin[step] = self.mark
        with failing("the device"):
            self.work.begin_step(step)
        first, last = self.plan.step_offset[step], self.plan.step_offset[step + 1]
        self.tokens = self.plan.step_row[first:last]
        self.row_of[self.tokens] = np.arange(last - first)

    def _forget(self) -> None:
        """Warm-up is over: every counter starts here."""
        self.clock.time.now_ns = self.counted_from = self.mark
        forget(self.s, self.clock, self.rules)
        self.clock.time.link_busy_ns = 0  # `landed` leaves out what lies before

    def _draft(self, step: int) -> None:
        """The draft model's time before a step. Nobody drafts here: so much time passes, on every device."""
        if len(self.costs.draft_ns) and self.costs.draft_ns[step]:
            self.port.let_pass(int(self.costs.draft_ns[step]))
            self.lap("draft_ns")

    def dense(self, step: int, layer: int) -> None:
        """The dense part of one MoE layer, and its router's ids on the host."""
        if layer == 0:
            self._draft(step)
        planned = int(self.costs.dense_ns[self.costs.cost_class[step], layer])
        self.port.compute.launch(lambda: self.work.dense(layer), Declared(planned))
        ended = self.port.compute.record()
        self.port.compute.launch(self.work.read_back, Declared(self.costs.decide_ns))
        self.port.compute.record().wait()
        self.lap("dense_ns", ended.time_ns() - self.origin)

    def visit(self, step: int, layer: int) -> None:
        """One visit, from the ids on the host to the end of its layer."""
        self._routed(step, layer)
        group, part = 0, "decide_ns"
        while self._lasts():
            n = self._next_group(part)
            if n > 0:
                self._run_group(layer, n, group)
            group, part = group + 1, "experts_ns"
        if self.s.visit.n_host > 0 or self.rules is not None:
            self._end_visit()
        self.log.visits[self.s.rows.visits - 1].end_ns = self.mark

    def _lasts(self) -> bool:
        """Whether the visit waits for anything but the host: work on the GPU, or copies that must land."""
        of = self.s.visit
        return bool(of.n_run < of.n_work or (self.rules is not None and visit_lasts(self.s, self.rules)))

    def _routed(self, step: int, layer: int) -> None:
        """Decide, commit, and give out the work."""
        s, log, self.layer = self.s, self.log, layer
        self.order.turn(VISIT)
        with self.port.lock:
            first, answer = int(s.rows.transfers), int(s.rows.answers)
            decide(s, log, self.route, self.miss, self.ahead, step, layer, self.hooks, self.rules)
            link_busy = s.link.n_flight > 0 or (self.rules is not None and self.rules.visit.busy == 1)
            self.routed_ns = self.latest = self.lap("decide_ns")
            planned = self.host.routed(s, self.rules, int(link_busy))
            if self.shared is not None and planned:
                for place, ns in self.shared.host_begins(self.routed_ns, planned, self.host.n_later):
                    self.copies[place].declare(ns)
            log.visits[s.rows.visits - 1].routed_ns = self.routed_ns
            self._queued(first)
            self.order.done(VISIT)
        self.jobs, host_jobs = self._jobs(layer, answer)
        on_host = s.on_host[: s.visit.n_host].tolist()
        with failing("the device"):
            self.work.routed(self.jobs, host_jobs, on_host[len(on_host) - self.host.n_later :])
        self.host.give([host_jobs[g] for g in on_host], planned, self.routed_ns)

    def _queued(self, first: int) -> None:
        """Transfers from row `first` of the log on were queued at the last mark."""
        for row in self.log.transfers[first : self.s.rows.transfers]:
            row.queued_ns = self.mark

    def _jobs(self, layer: int, answer: int) -> tuple[dict[int, Job], dict[int, Job]]:
        """Who executes each (row, slot): its own expert, its copy in a stage, a stand-in, the CPU or nobody; in the
        order work was given."""
        s, n, base = self.s, len(self.tokens), layer * self.plan.n_experts
        known = self.plan.weights
        if self.miss is not None:
            ids, weights = s.routed[:n].copy(), s.weight[:n].astype(np.float32)
        else:
            ids = self.plan.experts[self.tokens, layer].astype(np.int64)
            weights = np.zeros(ids.shape, np.float32) if known is None else known[self.tokens, layer].astype(np.float32)
        if known is None:  # nobody knows: an equal share for each
            weights = np.full(ids.shape, 1 / ids.shape[1], np.float32)
        on_cpu = np.zeros(ids.shape, np.bool_)
        own = ids + base
        runs_as = own if self.rules is None else self.rules.arrays["expert"]["at"][own]
        experts = np.where(ids >= 0, runs_as, -1)
        if self.miss is not None or self.rules is not None:
            for row in self.log.answers[answer : s.rows.answers]:
                at = self.row_of[row.row], row.slot
                if row.answer == ANSWER_SUBSTITUTE:
                    experts[at] = base + row.stand_in
                elif row.answer == ANSWER_DROP:
                    experts[at] = -1
                elif row.answer == ANSWER_LOW:
                    experts[at] = own[at] + self.n_full
                elif row.answer == ANSWER_CPU:
                    experts[at], on_cpu[at] = own[at], True
        return by_expert(experts, weights, ~on_cpu), by_expert(experts, weights, on_cpu)

    def _next_group(self, before: str) -> int:
        """Wait until the GPU can take a group, or (0) nothing more is waited for; `before`: what the time up to here
        belongs to."""
        with self.port.lock:
            if self._ready():
                return self.taken
            self.stalled_since = self.lap(before)
        self.port.wait_until(self._ready)
        with self.port.lock:
            self._count_stall(self.lap("stall_ns"), self.cause)
            self.stalled_since = -1
        return self.taken

    def _ready(self) -> bool:
        of = self.s.visit
        self.taken = self.order.take() if of.n_run < of.n_work else 0
        return self.taken > 0 or not self._lasts()

    def _run_group(self, layer: int, n: int, group: int) -> None:
        """The next n ready experts, from their slots; their marks; and their end."""
        s, compute, began = self.s, self.port.compute, self.mark
        ids = s.ready[s.visit.n_run : s.visit.n_run + n].tolist()
        slots = [self.stages.of[g] if self.is_copy(g) else s.expert[g].slot for g in ids]
        low = [self.is_low(g) for g in ids]
        planned = [self.expert_ns[i][s.expert[g].work] for i, g in zip(low, ids, strict=True)]
        reads = self.store.reading(slots)
        compute.launch(_nothing, Declared(self.costs.group_ns))
        marks = [compute.record()]
        if n > 1 and self.work.group and not any(low):
            jobs = [self.jobs[g] for g in ids]
            compute.launch(lambda: self.work.experts(layer, jobs, slots), Declared(sum(planned), reads=reads))
            marks.append(compute.record())
        else:
            for g, slot, ns, access in zip(ids, slots, planned, reads, strict=True):
                compute.launch(partial(self.work.expert, g, slot), Declared(ns, reads=[access]))
                marks.append(compute.record())
        self.store.read(slots, marks[-1])
        marks[-1].wait()
        self.order.turn(GROUP)
        with self.port.lock:
            first = int(s.rows.transfers)
            finish_group(s, self.log, self.route, n, self.rules)
            self._give_back(ids)
            self.lap("experts_ns")
            self._time_executions(marks, n, group, began)
            self._queued(first)
            self.order.done(GROUP)

    def _time_executions(self, marks: list[Event], n: int, group: int, began: int) -> None:
        """When each of the last n executions began and ended; one kernel's time is shared out by tokens."""
        rows = self.log.executions[self.s.rows.executions - n : self.s.rows.executions]
        times = [min(max(mark.time_ns() - self.origin, began), self.mark) for mark in marks]
        times[-1] = self.latest = max(times[-1], self.latest)
        if len(times) < n + 1:
            tokens = np.cumsum([0, *(row.tokens for row in rows)])
            shares = tokens / tokens[-1]
            times = [times[0] + round(share * (times[-1] - times[0])) for share in shares.tolist()]
        for row, begin, end in zip(rows, times[:-1], times[1:], strict=True):
            row.begin_ns, row.end_ns, row.group = begin, end, group

    def _end_visit(self) -> None:
        """The layer ends when the experts on the CPU are done too; then the core lets go of unwanted copies."""
        s, kind, awaited = self.s, HOST if self.s.visit.n_host > 0 else END, self.host.awaited()
        if awaited is not None:
            self.lap("experts_ns")
            awaited.wait()
            self.port.compute.launch(self.work.join_host)
        self.order.turn(kind)
        with self.port.lock:
            before = self.mark
            waited = self.lap("experts_ns" if awaited is None else "cpu_wait_ns") - before
            self.log.visits[s.rows.visits - 1].cpu_wait_ns = 0 if awaited is None else waited
            row = int(s.rows.executions)
            finish_host(s, self.log, self.rules)
            self.host.ended(self.log, self.rules, row, self.origin)
            if self.rules is not None:
                end_visit(s, self.rules)
                self._give_back(list(self.stages.of))
                self.latest = self.mark + 1  # what is learnt of from now on landed after the end, as far as times tell
            self.order.done(kind)

    # --- ends --------------------------------------------------------------------------------------------------------

    def end_step(self, step: int) -> None:
        """What follows the last MoE layer, and the end of the step."""
        of_step, compute = self.costs.cost_class[step], self.port.compute
        layers = self.plan.experts.shape[1]
        compute.launch(lambda: self.work.dense(layers), Declared(int(self.costs.dense_ns[of_step, layers])))
        ended = compute.record()
        compute.launch(self.work.end, Declared(int(self.costs.head_ns[of_step])))
        compute.record().wait()
        self.work.check()
        self.lap("dense_ns", ended.time_ns() - self.origin)
        self.order.turn(STEP)
        with self.port.lock:
            self.clock.end[step] = self.latest = self.lap("head_ns")
            self.clock.event[step] = self.s.run.events
            self.s.run.events += 1
            if step + 1 == self.plan.warmup_steps:
                self._forget()
            again = self.plan.resets is not None and bool(self.plan.resets[step + 1 :][:1].any())
            if again:
                self.ended = True  # what lands from now on is nobody's, until the next request begins
            else:
                self.order.done(STEP)
        if again:
            self._begin_again()

    def _begin_again(self) -> None:
        """The next request begins as the first one did, and that takes no time: the clock stands while copies under
        way, which are nobody's now, end, and the first residents are put back."""
        since, compute, link = self.port.now_ns(), self.port.compute, self.port.link
        with self.port.lock:
            self._note_starts()
        compute.wait(link.record())  # slots are safe by events: what is put back is behind all that went before,
        self.store.place(self.first)
        link.wait(compute.record())  # and what comes is behind that
        with self.port.lock:
            self.clock.time.now_ns = self.mark
            reset(self.s, self.log, self.clock, self.hooks, self.rules, len(self.plan.step_prefill))
            self.copies.clear()
            for copy in list(self.stages.of):
                self.stages.give_back(copy)
            self.origin += self.port.now_ns() - since
            self.ended = False
            self.order.begin_again()
            self.order.done(STEP)

    def finish(self) -> RunRecord:
        """The run has ended: what is queued or under way is unfinished."""
        with self.port.lock:
            s, self.clock.time.now_ns = self.s, self.mark
            self._note_starts()
            close(s, self.log, self.clock, self.rules)
            self.ended = True
        self.port.sync()
        return RunRecord.of(self.plan, s, self.log, self.clock, self.rules)

    def _note_starts(self) -> None:
        """When transfers began that are still under way; what ends them counts what of it lies before that."""
        s = self.s
        for i in range(s.link.n_flight):
            self._note_start((s.link.flight_head + i) % len(s.flight))

    def _note_start(self, place: int) -> None:
        """Of what stands at a place of State.flight."""
        started, g = self.copies[place].started_ns, int(self.s.flight[place])
        if started is None:
            return
        rows = self._rows([g], place, first=True)
        started = max(started - self.origin, int(rows[0].committed_ns))
        for row in rows:
            row.started_ns = started
        self.clock.starts[place] = started
        busy(self.s, self.clock, self.rules, g, min(0, started - self.counted_from))

    def residents(self) -> dict[int, int]:
        """{expert: slot} of what is resident now."""
        found = np.flatnonzero(self.s.arrays["expert"]["state"][: self.stage_base] == st.RESIDENT)
        return {g: int(self.s.expert[g].slot) for g in found.tolist()}


def refuse(plan: Plan) -> None:
    """Raises SpecError for a plan that only the simulated machines can run."""
    on, can = plan.on_miss, "the torch machine cannot; --machine compiled and --machine simpy of sim.run can"
    if on is None:
        return
    for name, rule in (("miss", plan.miss), ("bulk", on.bulk)):
        if rule is not None and rule.kind == REMOTE:
            raise SpecError(f"{name}: remote: the GPU computes an expert where it lies in host memory: {can}")
    if not on.beside:
        raise SpecError(f"beside: no: the GPU waits until the host has computed its experts: {can}")


def warm(plan: Plan) -> None:
    """Compile every choice for this plan's types, or load it from the cache, on a state that is thrown away."""
    s, log, clock, rules = begin_run(plan, True)
    route, miss, ahead, hooks = inputs(plan, s)
    with suppress(IllegalTransition):
        if plan.resets is not None:
            reset(s, log, clock, hooks, rules, len(plan.step_prefill))
        decide(s, log, route, miss, ahead, 0, 0, hooks, rules)
        next_commit(s, log, hooks, rules)
        take_group(s, plan.group, rules)
        finish_group(s, log, route, 0, rules)
        finish_host(s, log, rules)
        if rules is not None:
            visit_lasts(s, rules)
            behind(s, rules, 0)
            last_place(s)
            end_visit(s, rules)
        forget(s, clock, rules)
        busy(s, clock, rules, 0, 0)
        land(s, log, rules)  # of a copy that may not be: refused, and compiled


def _nothing() -> None:
    """The set-up of a group: on a device its time passes on the host."""
