"""The faults that the tests must catch, and which tests catch them: the table of test_planted_faults.py."""

from dataclasses import dataclass

REFERENCE = "tests/planted_watch.py::test_equals_the_reference"
LAWS = "tests/planted_watch.py::test_keeps_the_laws"
LOW_COPIES = "tests/planted_watch.py::test_equals_the_reference_with_low_precision_copies"


@dataclass(frozen=True)
class Fault:
    """In each (file, right, wrong) the text `right`, there exactly once, becomes `wrong`; then each of the tests
    `caught_by`, pytest node ids, fails."""

    name: str
    edits: tuple[tuple[str, str, str], ...]
    caught_by: tuple[str, ...]


def fault(name: str, file: str, right: str, wrong: str, *caught_by: str) -> Fault:
    """Of one edit. The reference catches what is said to be caught by nobody."""
    return Fault(name, ((file, right, wrong),), caught_by or (REFERENCE,))


RANKS = "for r in range(lists.shape[2]):\n"
TOKENS = "for i in range(first, last):\n"
SUBSTITUTION = "sim/core/substitution.py"
CORE = [
    Fault(
        "a held victim is allowed and the guard is gone",
        (
            ("sim/core/candidates.py", " & (s.expert[g].work == 0)", ""),
            ("sim/core/residency.py", 'raise RuntimeError("a held expert was chosen as victim")', "pass"),
        ),
        (REFERENCE, LAWS),
    ),
    fault(
        "ties are reversed",
        "sim/core/eviction.py",
        "better = key < best_key or (key == best_key and tied < best_tied)",
        "better = key < best_key or (key == best_key and tied > best_tied)",
    ),
    fault(
        "belady takes the nearest use",
        "sim/core/eviction.py",
        "return -s.expert[g].next_use",
        "return s.expert[g].next_use",
    ),
    fault(
        "fifo goes by the last touch",
        "sim/core/residency.py",
        "        if marks & NOT_BY_TOUCH == 0:\n",
        "        if True:\n",
    ),
    fault(
        "lru goes by the landing",
        "sim/core/residency.py",
        "        if marks & NOT_BY_TOUCH == 0:\n",
        "        if False:\n",
    ),
    fault(
        "the spared list is ignored",
        "sim/core/candidates.py",
        "return spare_from < 0 or not _listed(s, g, spare_from)",
        "return True",
        REFERENCE,
        LAWS,
    ),
    fault(
        "a decayed score keeps its date",
        "sim/core/worth.py",
        "        s.expert[g].scored = visits_of_layer(s, g)\n",
        "",
    ),
    fault(
        "the last free slot stays free",
        "sim/core/residency.py",
        "    gone = -1\n    if s.scope[scope].used < s.scope[scope].capacity:",
        "    gone = -1\n    if s.scope[scope].used < s.scope[scope].capacity - 1 or s.scope[scope].used == 0:",
        REFERENCE,
        LAWS,
    ),
    fault(
        "a landing is not a touch",
        "sim/core/residency.py",
        "\n    s.expert[g].landed = s.run.stamps\n    _touch(s, g)",
        "",
    ),
    fault(
        "a landing is a use",
        "sim/core/residency.py",
        "    _stand_in_order(s, g)\n    if g >= s.run.n_full",
        "    _stand_in_order(s, g)\n    s.expert[g].uses += 1\n    if g >= s.run.n_full",
    ),
    fault("an expert stays held after its group", "sim/core/residency.py", "    s.expert[g].work = 0\n", ""),
    fault(
        "a promoted prefetch keeps its cause", "sim/core/link.py", "    s.expert[g].origin = 0\n", "", REFERENCE, LAWS
    ),
    fault(
        "prefetch goes before demand",
        "sim/core/link.py",
        "    elif s.link.demand_head < s.link.demand_tail:\n",
        "    elif s.link.n_queued == 0:\n",
    ),
    fault(
        "the link takes one too many",
        "sim/core/link.py",
        "return queued and s.link.n_flight < s.run.depth",
        "return queued and s.link.n_flight <= s.run.depth",
        REFERENCE,
        LAWS,
    ),
    fault(
        "equal keys go last in, first out",
        "sim/core/link.py",
        "s.queue[i - 1].key > key",
        "s.queue[i - 1].key >= key",
    ),
    fault(
        "a rejected prefetch holds up the next",
        "sim/core/link.py",
        "        _reject(s, log, g)\n    return -1\n\n\n@inlined",
        "        _reject(s, log, g)\n        return -1\n    return -1\n\n\n@inlined",
    ),
    fault("an unwanted prefetch is not withdrawn", "sim/core/ahead.py", "withdraw(s, log, unwanted[i])", "pass"),
    fault(
        "the prefetch of a dropped expert is not withdrawn",
        "sim/core/answer.py",
        "        withdraw(s, log, g)\n",
        "        pass\n",
    ),
    fault("late is a miss", "sim/core/visit.py", "LATE if now == COMMITTED else MISS", "MISS"),
    fault(
        "the budget is one too large",
        "sim/core/ahead.py",
        "left = s.run.budget if",
        "left = s.run.budget + 1 if",
        REFERENCE,
        LAWS,
    ),
    fault(
        "lists merge token by token",
        "sim/core/ahead.py",
        f"    {RANKS}        {TOKENS}",
        f"    {TOKENS}        {RANKS}",
    ),
    fault("draws go on from visit to visit", "sim/core/visit.py", "new.draws = new.miss_draws", "new.miss_draws"),
    fault(
        "prompts are answered lossily",
        "sim/core/answer.py",
        "route.step_prefill[step] and not miss.policy.lossy_prefill",
        "False",
        REFERENCE,
        LAWS,
    ),
    fault(
        "a stand-in serves a token twice",
        SUBSTITUTION,
        "            s.expert[base + chosen].used_by = s.run.token\n",
        "",
    ),
    fault("rho allows one more", SUBSTITUTION, "done >= miss.params[RHO_MAX]", "done > miss.params[RHO_MAX]"),
    fault("the TAE gate opens the wrong way", SUBSTITUTION, "<= miss.tau[layer]", "> miss.tau[layer]"),
    fault("the control is not matched", SUBSTITUTION, "miss.params[MATCHED] != 0.0", "False"),
    fault("a use as stand-in always counts", "sim/core/residency.py", "s.run.no_touch == 0 or", "True or"),
    fault(
        "a background transfer is withdrawn like a prefetch",
        "sim/core/ahead.py",
        " and s.expert[g].origin == 1:\n            unwanted",
        ":\n            unwanted",
    ),
    fault("a resident gets no bonus", "sim/core/rerank.py", "(bonus if _resident(s, layer, e) else 0.0)", "0.0"),
    fault(
        "the window ends one expert too late",
        "sim/core/rerank.py",
        "and sum_p < mass",
        "and sum_p <= mass",
        "tests/test_reference_rerank.py::test_the_window_by_mass_ends_where_the_mass_is_reached",
    ),
    fault(
        "a window by mass ends with what was put in order first",
        "sim/core/rerank.py",
        "        if n == ordered:\n",
        "        if False:\n",
        "tests/test_reference_rerank.py::test_a_window_by_mass_is_as_long_as_it_takes",
    ),
    fault(
        "the best ranked stands in again",
        SUBSTITUTION,
        "expert_of(s.marked[done + 1])",
        "expert_of(s.marked[1])",
    ),
    fault(
        "a resident at the tolerance does not do",
        "sim/core/rerank.py",
        "if p < least:",
        "if p <= least:",
        "tests/test_reference_rerank.py::test_tolerance_takes_a_resident_of_the_same_probability_and_the_best_if_it_is_one",
    ),
    fault(
        "some of what was predicted will do",
        "sim/core/miss.py",
        "            return False\n        n += e >= 0",
        "            continue\n        n += e >= 0",
        "tests/test_reference_lossy.py::test_the_whole_predicted_set_must_be_there",
    ),
    fault(
        "what was predicted runs twice for a token",
        "sim/core/miss.py",
        "ANSWER_SUBSTITUTE, other, OPEN\n            s.expert[base + other].used_by = s.run.token",
        "ANSWER_SUBSTITUTE, other, OPEN",
        "tests/test_reference_lossy.py::test_what_was_predicted_runs_in_place_of_what_is_missing",
    ),
    fault(
        "a prompt is known before it was routed",
        "sim/fit/map_store.py",
        "np.arange(d) - d + layers, layers - 1",
        "layers - 1, layers - 1",
        "tests/test_map_store.py::test_in_front_of_what_is_seen_the_request_with_the_most_alike_prompt_foretells",
    ),
    fault(
        "the list gets longer the more alike",
        "sim/fit/map_store.py",
        "np.clip(1 - cosine[",
        "np.clip(cosine[",
        "tests/test_map_store.py::test_the_less_alike_the_longer_the_list",
    ),
    fault(
        "the warm-up lasts a token longer",
        "sim/fit/popular_per_request.py",
        "since < self.tokens",
        "since <= self.tokens",
        "tests/test_map_store.py::test_popular_per_request_by_hand",
    ),
    fault(
        "layer-distance takes the layer that comes next",
        "sim/core/worth.py",
        "away = s.expert[g].layer - s.run.layer\n",
        "away = s.run.layer - s.expert[g].layer\n",
    ),
    fault(
        "a window never forgets",
        "sim/core/worth.py",
        "route.leaving_row[i], layer, -1.0)",
        "route.leaving_row[i], layer, 0.0)",
    ),
    fault(
        "a request's tokens stay",
        "sim/core/worth.py",
        "route.leaving_row[i], each, -1.0)",
        "route.leaving_row[i], each, 0.0)",
    ),
    fault(
        "a copy is taken where the original is due",
        "sim/core/miss.py",
        "share <= miss.params[0] else",
        "share < miss.params[0] else",
        LOW_COPIES,
    ),
    fault(
        "a copy is demanded for every token",
        "sim/core/answer.py",
        " == ABSENT and s.expert[low].asked == 0:",
        " == ABSENT:",
        LOW_COPIES,
    ),
    fault("all never gives up waiting", "sim/core/visit.py", " and not _stuck(s, rules):", ":"),
]

# --- evictions, each against its spelling ---
BY_EVICTION = "tests/planted_watch.py::test_equals_the_reference_by_eviction"
EVICTIONS = [
    fault("a ghost is never forgotten", "sim/core/queues.py",
        "        _forget_oldest(s, scope, GHOSTS)\n", "        break\n", f"{BY_EVICTION}[s3-fifo]"),
    fault("a newcomer's ghost stays", "sim/core/queues.py",
        "  # a ghost\n        _drop(s, g)\n", "  # a ghost\n        pass\n", f"{BY_EVICTION}[arc]"),
    fault("the hand does not move", "sim/core/queues.py",
        "NOBODY if after == end else after", "NOBODY", f"{BY_EVICTION}[sieve]"),
    fault("a second chance is for good", "sim/core/queues.py",
        "            s.kept[g].count = 0\n            _move(s, g, 0)\n",
        "            _move(s, g, 0)\n            return NOBODY\n", f"{BY_EVICTION}[clock]"),
    fault("the target only rises", "sim/core/queues.py",
        "max(0.0, here.target - max(1.0, size[B1] / size[B2]))", "here.target", f"{BY_EVICTION}[arc]"),
    fault("frequencies never halve", "sim/core/queues.py",
        "                s.kept[i].count //= 2\n", "                pass\n",
        "tests/test_eviction_cases.py::test_on_a_machine[w-tinylfu halved-simpy]"),
    fault("an equal candidate is admitted", "sim/core/queues.py",
        "s.kept[newer].count <= s.kept[older].count", "s.kept[newer].count < s.kept[older].count",
        f"{BY_EVICTION}[w-tinylfu]"),
    fault("the first use counts as another", "sim/core/queues.py",
        "s.kept[g].landed == s.run.routed and", "False and", f"{BY_EVICTION}[s3-fifo]"),
    fault("a history is a use short", "sim/core/worth.py",
        "s.history[g, s.history.shape[1] - 1]", "s.history[g, 0]", f"{BY_EVICTION}[lru-k]"),
    fault("uses are those of earlier stays, too", "sim/core/worth.py",
        "        kept.count = 0\n", "        pass\n", f"{BY_EVICTION}[lfru]"),
    fault("ties go the other way", "sim/core/eviction.py",
        "return -np.int64(g) if", "return np.int64(g) if", f"{BY_EVICTION}[lfu]"),
    fault("a newcomer that is no better is kept", "sim/core/bypass.py",
        "worth(s, gone) > s.params[1]", "worth(s, gone) >= s.params[1]", f"{BY_EVICTION}[decayed]"),
    fault("what is known a step too far is known", "sim/core/worth.py",
        "s.params[0] + 1.0)", "s.params[0] + 2.0)", f"{BY_EVICTION}[belady-w]"),
    fault("a set changes at every visit", "sim/core/swap.py",
        "% int(s.params[0]) != 0", "% 1 != 0", f"{BY_EVICTION}[window-swap]"),
    fault("a request goes on with the counts of the last", "sim/core/worth.py",
        "            s.expert[g].score = 0.0\n", "            pass\n", f"{BY_EVICTION}[hobbit-priority]"),
    fault("experts served one by one are told apart at once", "sim/core/visit.py",
        "hooks is None or s.run.eviction_marks & ONE_BY_ONE == 0\n    n = slots", "True\n    n = slots",
        f"{BY_EVICTION}[fifo]"),
    fault("touches stay in the order of running", "sim/core/visit.py",
        "        touch_as_listed(s)\n", "        pass\n", f"{BY_EVICTION}[lru]"),
]  # fmt: skip

# --- what a run is made from ---
MEASURED = "tests/test_measured.py::test_layers_without_experts_and_with_linear_attention_have_tables_of_their_own"
KEPT = "tests/test_plan.py::test_a_run_of_another_seed_does_not_get_what_was_kept"
USES_THE_HOST = "tests/test_plan.py::test_who_may_answer_cpu_is_refused_where_nothing_says_what_that_costs"
PLAN = [
    fault(
        "what is left of a cache in bytes goes to the last layers",
        "sim/capacity.py",
        "(np.arange(scopes) < total % scopes)",
        "(np.arange(scopes) >= scopes - total % scopes)",
        "tests/test_plan.py::test_slots_by_hand",
    ),
    fault(
        "memory forgets the context offset",
        "sim/capacity.py",
        "int(trace.position[steps.row].max()) + 1 + spec.context_offset",
        "int(trace.position[steps.row].max()) + 1",
        "tests/test_plan.py::test_memory_is_that_of_the_longest_context_offset_and_all",
    ),
    fault(
        "durations forget the context offset",
        "sim/prepare.py",
        "positions = trace.position[steps.row].astype(np.int64) + self.context_offset",
        "positions = trace.position[steps.row].astype(np.int64)",
        "tests/test_plan.py::test_every_position_moves_by_the_context_offset",
    ),
    fault(
        "a prefetch budget of zero is no limit",
        "sim/prepare.py",
        "-1 if spec.prefetch_budget is None else",
        "-1 if not spec.prefetch_budget else",
        "tests/test_plan.py::test_a_budget_of_none_is_no_limit_and_of_zero_no_prefetch",
    ),
    fault(
        "residents are kept whatever the seed",
        "sim/prepare.py",
        "    placement: Chosen\n    seed: int\n",
        "    placement: Chosen\n    seed: int = field(repr=False)\n",
        KEPT,
    ),
    fault(
        "buddies are kept whatever the seed",
        "sim/prepare.py",
        "    expert_bytes: int\n    seed: int\n",
        "    expert_bytes: int\n    seed: int = field(repr=False)\n",
        KEPT,
    ),
    fault(
        "what reads the future is no oracle",
        "sim/policies/registry.py",
        '        oracle=True, keeps=("next-use",),',
        '        keeps=("next-use",),',
        "tests/test_policy_contract.py::test_only_an_oracle_knows_the_future[eviction-belady]",
    ),
    fault(
        "the cheaper of host and link is not known to use the host",
        "sim/policies/policy.py",
        "in (substitution.FALL_CPU, substitution.FALL_CHEAPER)",
        "in (substitution.FALL_CPU,)",
        USES_THE_HOST,
    ),
    fault(
        "a fallback given by --set is not looked at",
        "sim/policies/policy.py",
        'self._substitutes("fallback", given, substitution.FALL_FETCH)',
        'self._substitutes("fallback", {}, substitution.FALL_FETCH)',
        USES_THE_HOST,
    ),
    fault(
        "a selector given by --set makes nothing lossy",
        "sim/policies/policy.py",
        "selector != substitution.SELECT_NOBODY or",
        "False or",
        "tests/test_run.py::test_what_a_parameter_makes_lossy_is_called_so",
    ),
    fault(
        "a gap that began in the warm-up counts",
        "sim/outcome/summary.py",
        "        first = max(first, earliest)\n",
        "        first = max(first, earliest - 1)\n",
        "tests/test_schedules.py::test_what_is_counted_at_every_cut_and_every_warm_up",
    ),
    fault(
        "a request that has not begun counts",
        "sim/outcome/summary.py",
        "final not in prompt_end:",
        "True:",
        "tests/test_schedules.py::test_what_is_counted_at_every_cut_and_every_warm_up",
    ),
    fault(
        "a common beginning is a copy",
        "traces/statistics/overlap.py",
        "    inside = last[~np.isin(theirs[last], mine)]",
        "    inside = last",
        "tests/test_overlap.py::test_what_is_no_copy",
    ),
    fault(
        "more slots than experts are cut off",
        "sim/capacity.py",
        "    if cache > most:\n",
        "    if False:\n",
        "tests/test_run.py::test_what_cannot_be_is_refused",
    ),
    fault(
        "linear attention reads no state",
        "sim/costs/roofline.py",
        "        size += 2.0 * sequences * model.linear_state_bytes\n",
        "",
        "tests/test_costs.py::test_a_linear_attention_layer_does_not_grow_with_position",
    ),
    fault(
        "linear attention computes nothing",
        "sim/costs/roofline.py",
        "        operations += rows * model.linear_state_bytes\n",
        "",
        "tests/test_costs.py::test_a_linear_attention_layer_does_not_grow_with_position",
    ),
    fault(
        "an expert's activations do not grow with its tokens",
        "sim/costs/roofline.py",
        "activations = tokens * (",
        "activations = tokens + (",
        "tests/test_costs.py::test_an_expert_reads_and_writes_the_activations_of_each_token",
    ),
    fault(
        "the head computes one row",
        "sim/costs/roofline.py",
        "2.0 * needed * model.head_params)",
        "2.0 * model.head_params + 0.0 * needed)",
        "tests/test_costs.py::test_the_head_reads_its_weights_once_and_writes_the_logits_of_every_row",
    ),
    fault(
        "measured layers all have experts",
        "sim/costs/measured.py",
        '"moe" if layer in moe else "ffn"',
        '"moe"',
        MEASURED,
    ),
    fault(
        "measured linear attention scores entries",
        "sim/costs/measured.py",
        '0 if attention in ("linear", "none") else classes.scored[attention][where]',
        'classes.scored["full"][where]',
        MEASURED,
    ),
]

# --- what is fitted ---
ASKED = "tests/test_on_miss_spec.py::test_"
ON_MISS = [
    fault("many rows are more than so many", "sim/on_miss.py", "entries >= least", "entries > least",
        f"{ASKED}which_steps_are_of_many_rows"),
    fault("a visit wants one expert more", "sim/on_miss.py", "out[lo:hi] = ", "out[lo:hi] = 1 + ",
        f"{ASKED}stages_for_what_a_visit_may_copy"),
    fault("stages of a whole layer are not counted", "sim/on_miss.py",
        "self.stages or (self.ahead + 1)", "self.stages or self.ahead",
        f"{ASKED}stages_take_memory"),
    fault("one layer too few has slots", "sim/layers.py", "first else at >= layers - n", "first else at > layers - n",
        f"{ASKED}slots_of_each_layer"),
    fault("the last pattern decides", "sim/layers.py", "for pattern, memory in overrides if",
        "for pattern, memory in reversed(overrides) if", f"{ASKED}slots_of_each_layer"),
    fault("a run pays each expert's set-up", "sim/costs/roofline.py", "[transfer_ns(hardware, engine, n * size)",
        "[n * transfer_ns(hardware, engine, size)", f"{ASKED}a_run_of_experts_is_one_transfer_of_their_bytes"),
    fault("a dense part on the host is bound by reading alone", "sim/costs/roofline.py",
        "np.maximum(read, operations / host_compute_rate(hardware, engine, stored))", "read",
        f"{ASKED}a_dense_part_on_the_host_is_priced_as_its_experts"),
    fault("the host's rest takes no memory", "sim/costs/roofline.py", 'size + line["rest"] <= ram', "size <= ram",
        f"{ASKED}host_memory_by_hand"),
    fault("of pairs equally popular the last is taken", "sim/fit/placement.py",
        'np.argsort(-uses, kind="stable")[:total]', 'np.argsort(uses, kind="stable")[::-1][:total]',
        f"{ASKED}global_popularity_by_hand"),
    fault("a saved spec says defaults that came later", "sim/spec.py",
        "value == every[name].default and name not in mine)", "False)",
        f"{ASKED}a_saved_spec_says_its_version_and_of_what_came_later_only_what_is_asked"),
]  # fmt: skip
MACHINE = "tests/test_hardware_flags.py::test_"
HARDWARE = [
    fault("a pageable link stays as it was", "sim/catalog/changed.py", '("link", "pageable_link")', '("link",)',
        f"{MACHINE}a_curve_becomes_flat_and_pageable_links_go_along"),
    fault("a host's other rates stay as they were", "sim/catalog/changed.py", "rate * by for", "rate for",
        f"{MACHINE}what_else_a_host_reads_goes_along_in_proportion"),
    fault("durations given outright are changed in silence", "sim/catalog/changed.py",
        "if value is not None:\n            w", "if value is None:\n            w",
        f"{MACHINE}what_is_wrong_is_one_line[run-a link that is none]"),
    fault("a scaled link is set back to the rate asked for", "sim/experiments/engines.py",
        'fields.pop("link_gbps", None)', "pass", f"{MACHINE}flags_say_what_a_file_would[engines by ratio]"),
    fault("a memo forgets what is changed", "sim/prepare.py",
        'tuple(spec.changes.items()) if kind == "hardware" else ()', "()",
        f"{MACHINE}half_the_rate_of_the_host_is_twice_the_time_of_its_experts"),
    fault("what is replaced keeps the source of what it was", "sim/catalog/load.py",
        "for key in kept if key not in Entry", "for key in base if key not in Entry",
        f"{MACHINE}what_is_like_an_entry_keeps_the_sources_of_what_it_keeps"),
]  # fmt: skip
COSTS = "tests/test_cost_structure.py::test_"
STRUCTURE = [
    fault("cores beyond the first sixteen count whole", "sim/catalog/hardware_spec.py",
        "min(cores, math.sqrt(cores * CORES_IN_STEP))", "cores",
        f"{COSTS}an_expert_on_the_host_is_bound_by_reading_or_by_arithmetic"),
    fault("an engine reads all sockets", "sim/costs/roofline.py", 'engine.numa == "one"', "False",
        f"{COSTS}an_engine_reads_one_socket_or_all"),
    fault("an engine's share of the read rate is left out", "sim/costs/roofline.py",
        ' == "one") * engine.cpu_read_share', ' == "one")',
        f"{COSTS}an_expert_on_the_host_is_bound_by_reading_or_by_arithmetic"),
    fault("further tokens of an expert cost what the first does", "sim/costs/roofline.py",
        "np.minimum(tokens, 1) + np.maximum(tokens - 1, 0) / engine.cpu_batch_gain", "1.0 * tokens",
        f"{COSTS}further_tokens_of_an_expert_cost_less_arithmetic"),
    fault("one thread's work takes as long on every host", "sim/costs/roofline.py",
        "return ns / hardware.host.single_thread if", "return ns if",
        f"{COSTS}work_of_one_host_thread_is_scaled_by_its_speed"),
    fault("KV entries are read as weights are", "sim/costs/roofline.py",
        "np.where(classes.prefill, 1.0, engine.kv_read_share)", "1.0",
        f"{COSTS}kv_entries_are_read_at_a_share_of_their_own"),
    fault("a layer on the host has the times of one on the GPU", "sim/costs/roofline.py",
        'names += ["host_layer_ns"] if on_host else []', "pass", f"{COSTS}own_times_of_layers_on_the_host"),
    fault("a nominal peak is read whole", "sim/catalog/hardware_spec.py", "NOMINAL_SHARE * (self", "1.0 * (self",
        f"{COSTS}a_rate_that_nobody_measured_is_a_share_of_the_nominal_peak"),
]  # fmt: skip
TOLD = "tests/test_timings.py::test_"
TIMINGS = [
    fault("a machine is not left out", "sim/timings/judging.py", "found = fit(others)", "found = fit(teach)",
        f"{TOLD}no_row_has_a_part_in_its_own_prediction"),
    fault("more of a rate takes longer", "sim/timings/effects.py",
        "share = math.copysign(part / whole, self.slopes[term])", "share = part / whole",
        f"{TOLD}a_time_is_the_sum_of_its_parts"),
    fault("a row whose setting was assumed counts like the others", "sim/timings/effects.py",
        "ASSUMED if assumed else 0.0", "0.0", f"{TOLD}a_row_counts_by_what_is_known_of_it"),
    fault("many rows of a group count as many", "sim/timings/effects.py", " * math.sqrt(n) for", " for",
        f"{TOLD}a_row_counts_by_what_is_known_of_it"),
    fault("an effect that nobody told has no spread", "sim/timings/effects.py", "if name not in found.by_name)",
        "if name in found.by_name)", f"{TOLD}a_machine_without_timings_has_the_spread_of_the_others"),
    fault("routing stays behind", "sim/timings/running.py",
        "Finalize(self, shutil.rmtree, (self._folder, True), exitpriority=0)", "pass",
        f"{TOLD}routing_that_was_made_for_timings_goes_with_them"),
]  # fmt: skip
NAMED = "tests/test_engines.py::test_"
ENGINES = [
    fault("an engine sets what was given otherwise", "sim/engines.py", 'not in (*given, "set")', '!= "set"',
        f"{NAMED}a_spec_is_what_was_asked_for_and_can_be_asked_for_again"),
    fault("nothing is refused", "sim/engines.py", "if not free and not _can(", "if not free and not free and _can(",
        f"{NAMED}what_an_engine_cannot_do_is_refused_by_name"),
    fault("a saved spec forgets what its user turned off", "sim/spec.py", "and name not in mine)", ")",
        f"{NAMED}a_spec_is_what_was_asked_for_and_can_be_asked_for_again"),
    fault("ik_llama.cpp counts from the front", "sim/capacity.py", 'engine.cpu_moe == "last" and', "False and",
        f"{NAMED}which_layers_an_engine_puts_on_the_cpu"),
    fault("a card holds no staging", "sim/costs/memory_split.py", "stages if out else 0", "0",
        f"{NAMED}layers_that_fit_by_hand"),
    fault("one layer more than fits", "sim/costs/memory_split.py", 'at < n if knob == "first"',
        'at <= n if knob == "first"', f"{NAMED}layers_that_fit_by_hand"),
    fault("an engine takes the whole card", "sim/costs/memory_split.py", "int(self.vram * self.engine.memory_share)",
        "self.vram", f"{NAMED}slots_that_fit_by_hand"),
    fault("what an engine keeps free is not kept", "sim/costs/roofline.py", "(engine.reserve_mib << 20) + logits",
        "logits", f"{NAMED}layers_that_fit_by_hand"),
    fault("layers whose dense part is the host's take the GPU's memory", "sim/costs/memory_split.py",
        "out if dense_too else ()", "()", f"{NAMED}what_is_chosen_fits_and_no_more_does"),
    fault("transformers 5 moves the experts used", "sim/catalog/engines.toml", "true\nprefill_chunk = 1_000_000",
        "false\nprefill_chunk = 1_000_000",
        "tests/test_accelerate.py::test_a_simulated_run_moves_the_same_in_each_step"),
]  # fmt: skip
EVERY_SPREAD = "tests/test_placement2.py::test_spread_against_every_spread"
FIT = [
    fault(
        "layers may get fewer slots than asked for",
        "sim/fit/slots.py",
        "range(least, min",
        "range(1, min",
        EVERY_SPREAD,
    ),
    fault(
        "the most uneven of the best spreads",
        "sim/fit/slots.py",
        " - np.arange(n + 1) ** 2",
        " + np.arange(n + 1) ** 2",
        EVERY_SPREAD,
    ),
    fault(
        "no layer gets all its experts", "sim/fit/slots.py", "min(n, total) + 1", "min(n - 1, total) + 1", EVERY_SPREAD
    ),
]

# --- what is said of a run ---
VERDICTS = "tests/test_verdict.py::test_each_verdict_on_both_sides_of_its_thresholds"
FIGURES = [
    fault(
        "a GPU that waits a tenth of the time does not",
        "sim/outcome/verdict.py",
        "f.waits < GPU_WAITS",
        "f.waits <= GPU_WAITS",
        VERDICTS,
    ),
    fault(
        "a link is busy from the next per mille on",
        "sim/outcome/verdict.py",
        "f.link >= LINK_BUSY",
        "f.link > LINK_BUSY",
        VERDICTS,
    ),
    fault(
        "half of the layers small are not enough",
        "sim/outcome/verdict.py",
        "f.small >= SMALL",
        "f.small > SMALL",
        VERDICTS,
    ),
    fault(
        "waiting for the host is not looked at",
        "sim/outcome/verdict.py",
        "if f.cpu_wait > f.stall:",
        "if False:",
        VERDICTS,
    ),
    fault(
        "intervals are of 90 %",
        "sim/outcome/per_request.py",
        "LEVEL = 0.95",
        "LEVEL = 0.9",
        "tests/test_per_request.py::test_an_interval_is_the_middle_95_percent",
    ),
    fault(
        "what is dropped is not lost",
        "sim/sweeps/answer.py",
        "float(sum(lost))",
        "float(lost[0])",
        "tests/test_sweep.py::test_the_answer_is_the_best_of_each_setting_that_an_engine_could_have",
    ),
    fault(
        "waiting for the host is no stall in a comparison",
        "analysis/comparing/comparison.py",
        ' + s["breakdown_ns"]["cpu_wait"]',
        "",
        "tests/test_compare.py::test_the_shares_and_changes_of_a_row_by_hand",
    ),
    fault(
        "a token's p95 is its median",
        "sim/outcome/report.py",
        'np.percentile(share, 95, method="inverted_cdf",',
        'np.percentile(share, 50, method="inverted_cdf",',
        "tests/test_result.py::test_of_twenty_tokens_the_p95_is_the_nineteenth",
    ),
    fault(
        "the p95 counts the warm-up's tokens",
        "sim/outcome/report.py",
        "first = int(plan.step_offset[plan.warmup_steps])",
        "first = 0",
        "tests/test_result.py::test_of_twenty_tokens_the_p95_is_the_nineteenth",
    ),
    fault(
        "what re-ranks is not lossy",
        "sim/outcome/report.py",
        " and plan.rerank is None",
        "",
        "tests/test_result.py::test_what_must_be_said",
    ),
    fault(
        "a low-precision copy is as large as an expert",
        "sim/outcome/summary.py",
        '    out["demand"] -= record.counters["landed_low"] * (record.expert_bytes - record.low_bytes)\n',
        "",
        "tests/test_result.py::test_bytes_by_cause",
    ),
    fault(
        "an oracle wins",
        "analysis/comparing/leading.py",
        '("oracle", ',
        "(",
        "tests/test_answer.py::test_an_oracle_never_wins_and_is_named_but_not_as_a_limit",
    ),
    fault(
        "an interval that holds 1 is a lead",
        "analysis/comparing/leading.py",
        "interval[1] >= 1",
        "False",
        "tests/test_answer.py::test_an_interval_that_holds_one_is_a_tie",
    ),
    fault(
        "a knee is drawn where there is none",
        "analysis/curves/curve.py",
        " and sharpness >= HARDLY",
        "",
        "tests/test_report_charts.py::test_a_knee_is_drawn_only_where_there_is_one",
    ),
    fault(
        "measured and modelled runs compete",
        "analysis/comparing/comparison.py",
        "run.judged, run.measured]",
        "run.judged]",
        "tests/test_compare.py::test_who_stands_apart_from_the_front",
    ),
    fault(
        "requests of other tokens are paired",
        "analysis/comparing/pairing.py",
        "same = run.tokens[mine] == base.tokens[theirs]",
        "same = run.tokens[mine] >= 0",
        "tests/test_compare.py::test_pairs_by_hand",
    ),
    fault(
        "requests without a token are paired",
        "analysis/comparing/pairing.py",
        "some = run.tokens[mine] > 0",
        "some = run.tokens[mine] >= 0",
        "tests/test_compare.py::test_pairs_by_hand",
    ),
    fault(
        "a TPOT is compared with none",
        "analysis/comparing/pairing.py",
        "both = np.isfinite(run.tpot_ms[mine]) & np",
        "both = np.isfinite(run.tpot_ms[mine]) | np",
        "tests/test_compare.py::test_pairs_by_hand",
    ),
    fault(
        "sigmoid scores are read as a softmax",
        "traces/statistics/stats.py",
        "_sigmoid if sigmoid else _softmax",
        "_softmax",
        "tests/test_traces_stats.py::test_router_entropy_of_sigmoid_scores_by_hand",
    ),
]

# --- what is read and observed ---
PHASE_WORDS = "tests/test_traces_cli.py::test_csv_words_of_a_phase"
LINK_SEEN = "tests/test_durations.py::test_what_a_device_adds_between_two_transfers_is_part_of_the_second"
READ = [
    fault("a prompt is generated", "traces/foreign/formats/csv.py", '"prompt": 1', '"prompt": 0', PHASE_WORDS),
    fault("a word of a phase is not known", "traces/foreign/formats/csv.py", ', "generate": 0', "", PHASE_WORDS),
    fault(
        "a following transfer lasts from its start",
        "runtime/measuring/durations.py",
        '(t["landed_ns"] - before)[counted & following]',
        '(t["landed_ns"] - t["started_ns"])[counted & following]',
        LINK_SEEN,
    ),
    fault(
        "idle and following transfers are taken for each other",
        "runtime/measuring/durations.py",
        'following = t["committed_ns"] < before',
        'following = t["committed_ns"] >= before',
        LINK_SEEN,
    ),
]

PORT = [
    fault(
        "waiting sleeps",
        "runtime/device/accelerator.py",
        "                give_way()",
        "                time.sleep(0)",
        "tests/test_accelerator.py::test_an_idle_poll_is_short",
    ),
    fault(
        "the paced link sleeps to the end",
        "runtime/device/cpu.py",
        "            give_way()",
        "            time.sleep(0)",
        "tests/test_accelerator.py::test_a_paced_copy_ends_when_it_should",
    ),
    fault(
        "an event is an anchor whenever it is found to be over",
        "runtime/device/accelerator.py",
        "self.before_ns, time.perf_counter_ns())",
        "time.perf_counter_ns() - 1_000, time.perf_counter_ns())",
        "tests/test_accelerator.py::test_an_event_that_happened_long_ago_is_no_anchor",
    ),
    fault(
        "cuDNN's attention stays on",
        "runtime/device/accelerator.py",
        "    backends.enable_cudnn_sdp(False)\n",
        "",
        "tests/test_accelerator.py::test_cudnn_attention_is_off_while_the_port_is_open",
    ),
    fault(
        "a grouped kernel over any number of slots",
        "runtime/replaying/layers.py",
        "self.in_one and max(*self.store.slots, self.store.stages) <= MOST_GROUPS",
        "self.in_one",
        "tests/test_accelerator.py::test_more_slots_than_a_grouped_kernel_takes_are_looped_over",
    ),
    fault(
        "giving memory back talks over what went wrong",
        "runtime/device/accelerator.py",
        "        with suppress(Exception):\n            torch.accelerator.set_stream(self.before)",
        "        torch.accelerator.set_stream(self.before)",
        "tests/test_accelerator.py::test_what_the_device_said_first_is_what_is_told",
    ),
    fault(
        "a kernel's check compares a device's tensor with a host's",
        "tests/devices.py",
        "self.store.target(slot).cpu()",
        "self.store.target(slot)",
        "tests/test_accelerator.py::test_on_the_accelerator",
    ),
]
REFERENCE_BY_RULES = "tests/planted_watch.py::test_equals_the_brute_force_by_rules"
LAWS_BY_RULES = "tests/planted_watch.py::test_keeps_the_laws_by_rules"
BOTH = (REFERENCE_BY_RULES, LAWS_BY_RULES)
EVICTS = """
    from sim.core.residency import _evict
    for i in range(len(s.slot)):
        each = s.slot[i]
        if s.expert[each].state == RESIDENT and s.expert[each].work == 0:
            _evict(s, each)
            break
"""
STAGES, LANDED = "sim/core/stages.py", "        move(s, copy, RESIDENT)\n"
FREED = "    rules.run.stages_free += 1\n"
SERIAL = "    if rules is not None and rules.run.serial == 1 and rules.visit.copies_left > 0:\n        return 0\n    if"
MARGIN = "worth(s, may.newcomer)"
BY_RULES = [
    fault(
        "an admitted expert is waited for",
        "sim/core/rules.py",
        "admitted = own.origin == ADMISSION and rules.visit.admits == 1",
        "admitted = False",
        *BOTH,
    ),
    Fault(
        "a stage is freed early",
        ((STAGES, LANDED, f"{LANDED}    {FREED}"), (STAGES, f"    move(s, copy, ABSENT)\n{FREED}", "")),
        BOTH,
    ),
    fault(
        "a stream evicts",
        STAGES,
        "    rules.run.stages_free -= 1\n",
        f"    rules.run.stages_free -= 1\n{EVICTS}",
        *BOTH,
    ),
    fault("the link is not slowed", "sim/machines/clock.py", "if beside <= 0 or n == d:", "if True:", *BOTH),
    fault("a count outlives the landing", "sim/core/link.py", "rules.expert[g].misses = 0", "pass", REFERENCE_BY_RULES),
    fault(
        "a split goes by first appearance",
        "sim/core/split.py",
        "while j > 0 and s.expert[order[j - 1]].tokens < s.expert[g].tokens:",
        "while False:",
        *BOTH,
    ),
    fault("hits do not wait for a serial visit's copies", "sim/core/visit.py", SERIAL, "    if", *BOTH),
    fault(
        "a run goes on into the next layer",
        STAGES,
        "return same_visit and s.expert[copy].layer == s.expert[last].layer",
        "return s.expert[copy].layer >= 0",
        REFERENCE_BY_RULES,
    ),
    fault(
        "a run takes more stages than are free",
        STAGES,
        "copy != last + 1 or rules.run.stages_free == 0",
        "copy != last + 1",
        *BOTH,
    ),
    fault(
        "the layer behind the right one is streamed ahead",
        "sim/core/visit.py",
        "visit + rules.run.ahead,",
        "visit + rules.run.ahead + 1,",
        REFERENCE_BY_RULES,
    ),
    fault(
        "a copy left over is dropped though it was taken over",
        STAGES,
        "of.joined <= of.ended",
        "of.ended >= 0",
        REFERENCE_BY_RULES,
    ),
    fault(
        "of equal weights the earlier is deferred",
        "sim/core/answer.py",
        "<= s.weight[row, least]",
        "< s.weight[row, least]",
        REFERENCE_BY_RULES,
    ),
    fault(
        "a queued admission leaves its slot free",
        "sim/core/admission.py",
        " - rules.queued[scope]",
        "",
        REFERENCE_BY_RULES,
    ),
    fault(
        "an admission spares one visit more",
        "sim/core/candidates.py",
        "< may.spare",
        "<= may.spare",
        REFERENCE_BY_RULES,
    ),
    fault(
        "a margin asks for worse",
        "sim/core/candidates.py",
        f"* may.margin < {MARGIN}",
        f"* may.margin > {MARGIN}",
        REFERENCE_BY_RULES,
    ),
    fault(
        "an admission goes before prefetches",
        "sim/core/link.py",
        "(s.link.n_queued == 0 or s.expert[s.queue[0].expert].origin == BACKGROUND)",
        "True",
        *BOTH,
    ),
    fault(
        "a remote begins while the link is busy",
        "sim/core/remote.py",
        "under_way = s.link.n_flight > 0 or",
        "under_way = s.link.n_flight > 1 or",
        *BOTH,
    ),
    fault(
        "bulk visits touch residents all the same",
        "sim/core/visit.py",
        "elif rules.visit.bulk == 1 and rules.run.bulk_touch == 0:",
        "elif False:",
        REFERENCE_BY_RULES,
    ),
    fault(
        "a tie of a makespan goes over the link",
        "sim/core/split.py",
        "if by_host <= by_link:",
        "if by_host < by_link:",
        "tests/test_reference_on_miss.py::test_a_tie_of_a_makespan_goes_to_the_host",
    ),
]
FLOORS, STOOD = "tests/test_floor.py::test_", "tests/test_side_by_side.py::test_"
COMPARED = [
    fault("the floor has no bypass", "analysis/curves/floor.py", "._replace(stages=True)", "",
        f"{FLOORS}bypass_by_hand"),
    fault("hits of prompts compete with those of decode steps", "analysis/curves/floor.py",
        "if visits.prefill[begin]:", "if False:", f"{FLOORS}a_run_of_prompts_does_not_compete_with_decode_steps"),
    fault("the floor forgets nobody", "sim/outcome/packing.py",
        "self.last[experts] =", "self.last[experts[:0]] =", f"{FLOORS}it_is_the_best_of_all_choices[0]"),
    fault("static keeps one expert more", "analysis/curves/policies.py",
        "rank[order] = place if", "rank[order] = place - 1 if",
        "tests/test_policy_curve.py::test_static_by_hand"),
    fault("each capacity counts as a capture", "sim/experiments/side_by_side.py",
        "traces = dict.fromkeys(cell[0] for cell in cells)", "traces = [cell[0] for cell in cells]",
        f"{STOOD}mean_ranks_by_hand"),
    fault("an oracle is ranked", "sim/experiments/side_by_side.py", ' and not row["oracle"]', "",
        f"{STOOD}an_oracle_is_shown_and_never_ranked"),
    fault("policies of a cell have draws of their own", "sim/experiments/side_by_side.py",
        "drawn(n, self._seed)", "drawn(n, self._seed + len(name))",
        f"{STOOD}a_row_is_a_plain_run_with_the_intervals_of_its_requests"),
    fault("captures are shuffled together", "sim/experiments/ranks.py", "axis=2).mean", "axis=1).mean",
        "tests/test_ranks.py::test_against_every_permutation"),
]  # fmt: skip
REFERENCE_IN_CHUNKS = "tests/planted_watch.py::test_equals_the_brute_force_in_chunks"
LAWS_IN_CHUNKS = "tests/planted_watch.py::test_keeps_the_laws_in_chunks"
CHUNKS = [
    fault(
        "a rest that is waited for goes behind the demand",
        "sim/core/link.py",
        "        g = awaited_rest(s, rules)\n",
        "        g = NOBODY\n",
        REFERENCE_IN_CHUNKS,
    ),
    fault(
        "a rest goes before the demand though nobody waits for it",
        "sim/core/chunks.py",
        "    return g if awaited else NOBODY",
        "    return g",
        REFERENCE_IN_CHUNKS,
    ),
    fault(
        "a serial visit's copies are not waited for in chunks",
        "sim/core/chunks.py",
        " or (copy >= 0 and rules.expert[copy].owed == 1)",
        "",
        REFERENCE_IN_CHUNKS,
    ),
    fault(
        "the next prefetch goes before the rest",
        "sim/core/link.py",
        "    if rules.run.rest >= 0 or s.link.demand_head < s.link.demand_tail:\n        return rules.run.rest\n",
        "    if s.link.demand_head < s.link.demand_tail or (s.link.n_queued == 0 and rules.run.rest >= 0):\n"
        "        return rules.run.rest\n",
        REFERENCE_IN_CHUNKS,
        LAWS_IN_CHUNKS,
    ),
    fault(
        "a demand that finds no room keeps the rest waiting",
        "sim/core/link.py",
        "    if rules is not None and g < 0:\n",
        "    if rules is not None and g < 0 and s.link.demand_head >= s.link.demand_tail:\n",
        REFERENCE_IN_CHUNKS,
    ),
    fault(
        "a rest goes while a remote waits",
        "sim/core/link.py",
        "    if rules.visit.remote_waits == 1:\n",
        "    if rules.visit.remote_waits == 1 and rules.run.rest < 0:\n",
        REFERENCE_IN_CHUNKS,
    ),
    fault(
        "an expert lands with its first chunk",
        "sim/core/chunks.py",
        "    if part.last == 1:\n        return False\n",
        "    if part.number <= 0:\n        return False\n",
        REFERENCE_IN_CHUNKS,
    ),
    fault(
        "merged copies are cut",
        "sim/core/chunks.py",
        " and (g < s.run.stage_base or rules.run.merge_runs == 0)",
        "",
        REFERENCE_IN_CHUNKS,
        LAWS_IN_CHUNKS,
    ),
    fault(
        "the last chunk lasts as long as a full one",
        "sim/machines/compiled.py",
        "d.chunk_ns[follows, rules.part[place].last]",
        "d.chunk_ns[follows, 0]",
        REFERENCE_IN_CHUNKS,
        LAWS_IN_CHUNKS,
    ),
    fault(
        "a chunk leaves bytes out",
        "runtime/replaying/machine.py",
        "return part.number * share,",
        "return min(1.0, (part.number + 1) * share),",
        "tests/test_chunks.py::test_bytes_go_where_they_belong",
    ),
    fault(
        "bounds take a transfer in chunks for whole at a cut",
        "sim/outcome/span.py",
        "loads - 1 - link.partly",
        "loads - 1",
        "tests/test_chunks.py::test_after_a_warm_up_one_may_be_sent_in_part",
    ),
]

# --- speculative windows ---
WINDOWS = "tests/test_speculation.py::"
SPECULATION = [
    fault(
        "a window accepts too many",
        "sim/speculation.py",
        "np.logical_and.accumulate(right, axis=1).sum(axis=1)",
        "right.sum(axis=1)",
        f"{WINDOWS}test_the_reference_lays_the_same_windows",
    ),
    fault(
        "a window moves on behind all its rows",
        "sim/steps.py",
        "one.head, one.window = one.head + accepted, one.window + 1",
        "one.head, one.window = one.head + len(window), one.window + 1",
        f"{WINDOWS}test_windows_by_hand",
        f"{WINDOWS}test_the_reference_lays_the_same_windows",
    ),
    fault(
        "rejected rows are tokens",
        "sim/outcome/summary.py",
        'steps.get("accepted", steps["rows"])',
        'steps["rows"]',
        f"{WINDOWS}test_a_run_by_hand",
    ),
    fault(
        "the first row of a window is drafted, too",
        "sim/speculation.py",
        "(windows.rows.astype(np.int64) - 1) * each_ns",
        "windows.rows.astype(np.int64) * each_ns",
        f"{WINDOWS}test_windows_by_hand",
    ),
    fault(
        "a draft that lands too late joins",
        "sim/core/ahead.py",
        "return (before + 1) * ahead.run.each_ns",
        "return before * ahead.run.each_ns",
        f"{WINDOWS}test_what_cannot_land_in_time_does_not_join",
    ),
    fault(
        "what a rejected row lost is kept",
        "sim/core/answer.py",
        "            s.loss[route.step_row[i]] = 0.0  # a rejected row runs again\n",
        "            pass\n",
        f"{WINDOWS}test_a_token_loses_what_it_lost_when_it_last_ran",
    ),
]
COUNTS = "tests/test_counting.py::"
COUNTING = [
    fault(
        "what a request uses is known to the next",
        "sim/core/reset.py",
        "for i in range(len(now)):",
        "for i in range(min(len(now), 8)):",
        f"{COUNTS}test_a_request_finds_the_first_residents",
    ),
    fault(
        "a landing announced before a reset lands something",
        "sim/machines/discrete.py",
        "self.landed if self.plan.resets is None else self.landing)",
        "self.landed)",
        f"{COUNTS}test_what_is_under_way_ends_unfinished_and_the_link_is_idle",
    ),
    fault(
        "a user's own state outlives its request",
        "sim/core/reset.py",
        "            hooks.floats[STATES + kind, :] = 0.0\n",
        "            pass\n",
        f"{COUNTS}test_a_users_own_state_is_zero_again",
    ),
    fault(
        "the future is forgotten, too",
        "sim/core/reset.py",
        "        s.first[g].next_use = s.expert[g].next_use\n",
        "        pass\n",
        f"{COUNTS}test_the_future_is_what_it_was",
    ),
    fault(
        "a window forgets what a reset has forgotten",
        "sim/steps.py",
        "np.where(gone >= since,",
        "np.where(gone >= 0,",
        f"{COUNTS}test_what_looks_back_forgets_nothing_of_before_a_reset",
    ),
    fault(
        "a share of the steps is taken in binary",
        "sim/prepare.py",
        "int(exact(spec.warmup_share) * steps)",
        "int(spec.warmup_share * steps)",
        f"{COUNTS}test_a_share_of_the_steps_warms_up",
    ),
    fault(
        "groups stay those of the whole trace",
        "traces/format/trace.py",
        "[of[i] for i in kept]",
        "of",
        f"{COUNTS}test_a_group_of_requests",
    ),
    fault(
        "pairs within their rounding are told apart",
        "sim/experiments/hit_rates.py",
        "> a.figure.rounding + b.figure.rounding]",
        ">= 0]",
        "tests/test_hit_rates.py::test_pairs_that_change_places",
    ),
]
FAULTS = [
    *CORE, *EVICTIONS, *BY_RULES, *CHUNKS, *COMPARED, *PLAN, *ON_MISS, *HARDWARE, *STRUCTURE, *TIMINGS, *ENGINES, *FIT,
    *FIGURES, *READ, *PORT, *SPECULATION, *COUNTING,
]  # fmt: skip
