"""The independent reference's re-ranking policies: new experts and weights for a step's tokens at one layer.

Experts are numbered within their layer. Rankings are by descending score, ties to the lower id.
"""

from collections.abc import Sequence

from sim.core.plan import Plan
from tests.reference_miss import Token, logits_of, softmax


def heaviest(token: Token, count: int) -> list[int]:
    """The `count` slots of largest weight, ties to the lower slot; slots without an expert do not count."""
    slots = [slot for slot, expert in enumerate(token.ids) if expert >= 0]
    return sorted(slots, key=lambda slot: (-token.weights[slot], slot))[:count]


def ranking(scores: Sequence[float]) -> list[int]:
    return sorted(range(len(scores)), key=lambda expert: (-scores[expert], expert))


class Reranker:
    """Remembers, per layer, the spread of the logits that cache-prior has seen."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.spread = [0.0] * plan.experts.shape[1]
        self.seen = [0] * plan.experts.shape[1]

    def rerank(self, layer: int, tokens: list[Token], resident: set[int]) -> list[Token]:
        """What a visit's tokens want, given who of the layer is resident at the routed instant."""
        choice = self.plan.rerank
        if choice is None:
            return tokens
        params = [float(value) for value in choice.params]
        if choice.name == "cache-prior":
            return [self.cache_prior(layer, token, resident, *params) for token in tokens]
        if choice.name == "max-rank":
            return [self.max_rank(layer, token, resident, *params) for token in tokens]
        if choice.name == "cache-prior-mass":
            return [self.cache_prior_mass(layer, token, resident, *params) for token in tokens]
        if choice.name == "tolerance":
            return [self.tolerance(layer, token, resident, *params) for token in tokens]
        if choice.name == "smoe":
            return [self.smoe(layer, token, resident, *params) for token in tokens]
        if choice.name == "adapmoe":
            return [adapmoe(token, *params) for token in tokens]
        if choice.name == "sere":
            return self.sere(layer, tokens, *params)
        raise ValueError(f"the reference knows no re-ranking policy {choice.name}")

    def chosen(self, layer: int, token: Token, experts: list[int]) -> Token:
        """The token with these experts, best first, and the weights that the router gives them."""
        probability = softmax(logits_of(self.plan, token.row, layer))
        weights = [probability[expert] for expert in experts]
        if self.plan.norm_topk:
            total = 0.0
            for weight in weights:
                total += weight
            weights = [weight / total for weight in weights]
        empty = len(token.ids) - len(experts)
        return Token(token.row, experts + [-1] * empty, weights + [0.0] * empty)

    def cache_prior(self, layer: int, token: Token, resident: set[int], strength: float) -> Token:
        """arXiv 2412.00099: residents' scores are raised by a share of the usual spread of the logits."""
        logits = logits_of(self.plan, token.row, layer)
        self.spread[layer] += max(logits) - min(logits)
        self.seen[layer] += 1
        usual = self.spread[layer] / self.seen[layer]
        scores = [z + strength * usual * (expert in resident) for expert, z in enumerate(logits)]
        return self.chosen(layer, token, ranking(scores)[: len(token.ids)])

    def max_rank(self, layer: int, token: Token, resident: set[int], always: float, among: float) -> Token:
        """arXiv 2412.00099: the top `always`, then residents among the top `among`, then by rank."""
        ranked = ranking(logits_of(self.plan, token.row, layer))
        near = [expert for expert in ranked[: int(among)] if expert in resident]
        experts = list(dict.fromkeys([*ranked[: int(always)], *near, *ranked]))
        return self.chosen(layer, token, experts[: len(token.ids)])

    def cache_prior_mass(self, layer: int, token: Token, resident: set[int], always: float, mass: float) -> Token:
        """arXiv 2412.00099: max-rank whose window is the fewest experts that have so much of the probability."""
        logits = logits_of(self.plan, token.row, layer)
        probability, sums = softmax(logits), [0.0]
        for expert in ranking(logits):
            sums.append(sums[-1] + probability[expert])
        among = next((n for n, so_far in enumerate(sums) if so_far >= mass), len(logits))
        return self.max_rank(layer, token, resident, always, among)

    def tolerance(self, layer: int, token: Token, resident: set[int], share: float) -> Token:
        """arXiv 2608.18261: each choice may fall on a resident that is not much less probable than the best one."""
        logits, chosen = logits_of(self.plan, token.row, layer), list[int]()
        probability = softmax(logits)
        for _ in token.ids:
            left = [expert for expert in ranking(logits) if expert not in chosen]
            near = [e for e in left if e in resident and probability[e] >= (1 - share) * probability[left[0]]]
            chosen.append((near or left)[0])
        return self.chosen(layer, token, chosen)

    def smoe(self, layer: int, token: Token, resident: set[int], share: float) -> Token:
        """arXiv 2508.18983: a missing expert that scores low gives way to a resident just below it."""
        probability = softmax(logits_of(self.plan, token.row, layer))
        ids, weights, top_k = list(token.ids), list(token.weights), len(token.ids)
        if top_k >= len(probability):
            return token  # nobody is left to score next
        next_best = sorted(probability, reverse=True)[top_k]
        for slot, expert in enumerate(token.ids):
            if expert < 0 or expert in resident or probability[expert] >= next_best * (1 + share):
                continue
            near = [j for j in sorted(resident - {*ids, *token.ids}) if probability[j] < next_best]
            near = [j for j in near if next_best * (1 - share) < probability[j]]
            if near:
                ids[slot] = min(near, key=lambda j: (-probability[j], j))
                if probability[expert] > 0:
                    weights[slot] = weights[slot] * probability[ids[slot]] / probability[expert]
        return Token(token.row, ids, weights)

    def sere(self, layer: int, tokens: list[Token], threshold: float, primaries: float) -> list[Token]:
        """arXiv 2602.07616: in a batch, secondary experts go to the most similar primary one."""
        if self.plan.similarity is None:
            raise ValueError("sere needs similarity, the plan has none")
        alike = self.plan.similarity[layer]
        primary = sorted({token.ids[slot] for token in tokens for slot in heaviest(token, int(primaries))})
        result: list[Token] = []
        for token in tokens:
            ids, weights = list(token.ids), list(token.weights)
            for slot, expert in enumerate(token.ids):
                if expert < 0 or expert in primary or not primary:
                    continue
                nearest = min(primary, key=lambda j: (-float(alike[expert, j]), j))
                if float(alike[expert, nearest]) < threshold:
                    continue
                if nearest in ids:
                    weights[ids.index(nearest)] += weights[slot]
                    ids[slot], weights[slot] = -1, 0.0
                else:
                    ids[slot] = nearest
            result.append(Token(token.row, ids, weights))
        return result


def adapmoe(token: Token, threshold: float) -> Token:
    """arXiv 2408.10284: an expert other than the heaviest is left out where its weight is small."""
    kept = heaviest(token, 1)
    pairs = enumerate(zip(token.ids, token.weights, strict=True))
    light = {slot for slot, (_, weight) in pairs if slot not in kept and weight * weight < threshold}
    ids = [-1 if slot in light else expert for slot, expert in enumerate(token.ids)]
    return Token(token.row, ids, token.weights)
