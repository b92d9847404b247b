"""Vectors of towers in float64 with plain loops, straight from the formulas and the names of the weights."""

from __future__ import annotations

import math

from tests.oracles_overarch import gelu, linear, relu, silu

ACTIVATION = {"relu": relu, "silu": silu, "gelu": gelu}


def layer_norm(values: list[float]) -> list[float]:
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / len(values)
    return [(value - mean) / math.sqrt(variance + 1e-6) for value in values]


def bucket(difference: int, num_buckets: int) -> int:
    return min(math.floor(math.log(max(abs(difference), 1)) / 0.301), num_buckets)


def attention(q, k, v, place_bias, time_bias, times) -> list[list[list[float]]]:
    """One history: q, k [n][H][A], v [n][H][V]; the result [n][H][V]."""
    longest = (len(place_bias) + 1) // 2
    result = []
    for i in range(len(q)):
        after = times[min(i + 1, len(q) - 1)] if times else 0
        heads = []
        for h in range(len(q[i])):
            total = [0.0] * len(v[i][h])
            for j in range(i + 1):
                score = math.fsum(a * b for a, b in zip(q[i][h], k[j][h], strict=True))
                score += float(place_bias[longest - 1 + j - i])
                if times:
                    score += float(time_bias[bucket(after - times[j], len(time_bias) - 1)])
                weight = silu(score) / longest
                total = [old + weight * value for old, value in zip(total, v[j][h], strict=True)]
            heads.append(total)
        result.append(heads)
    return result


def heads_of(values: list[float], heads: int) -> list[list[float]]:
    size = len(values) // heads
    return [values[h * size : (h + 1) * size] for h in range(heads)]


def hstu_state(config, weights, items: list[list[float]], times: list[int] | None) -> list[float]:
    hstu = config.hstu
    if not items:
        return [0.0] * hstu.width
    if hstu.width != config.dim:
        items = [linear(weights, "input", item) for item in items]
    x = [
        [value * math.sqrt(hstu.width) + float(weights["places"][i][d]) for d, value in enumerate(item)]
        for i, item in enumerate(items)
    ]
    wide, narrow = hstu.heads * hstu.v_dim, hstu.heads * hstu.qk_dim
    for block in range(hstu.blocks):
        name = f"blocks.{block}"
        mixed = [[silu(value) for value in linear(weights, f"{name}.uvqk", layer_norm(event))] for event in x]
        u = [event[:wide] for event in mixed]
        v = [heads_of(event[wide : 2 * wide], hstu.heads) for event in mixed]
        q = [heads_of(event[2 * wide : 2 * wide + narrow], hstu.heads) for event in mixed]
        k = [heads_of(event[2 * wide + narrow :], hstu.heads) for event in mixed]
        bias = weights.get(f"{name}.time_bias")
        found = attention(q, k, v, weights[f"{name}.place_bias"], bias, times if bias is not None else None)
        for i, heads in enumerate(found):
            flat = layer_norm([value for head in heads for value in head])
            gated = [a * b for a, b in zip(u[i], flat, strict=True)]
            x[i] = [a + b for a, b in zip(x[i], linear(weights, f"{name}.output", gated), strict=True)]
    return layer_norm(x[-1])


def tower(config, weights, items, times, features: list[float]) -> list[list[float]]:
    """The vectors [T][D] of one request."""
    state: list[float] = []
    if config.kind == "mean_pool":
        state = [math.fsum(item[d] for item in items) / max(len(items), 1) for d in range(config.dim)]
    elif config.kind == "hstu":
        state = hstu_state(config, weights, items, times)
    values = [*state, *features]
    if config.head:
        for layer in range(len(config.hidden)):
            values = [ACTIVATION[config.activation](value) for value in linear(weights, f"head.{layer}", values)]
        values = linear(weights, f"head.{len(config.hidden)}", values)
    vectors = [values[t : t + config.dim] for t in range(0, len(values), config.dim)]
    if config.normalize:
        lengths = [max(math.sqrt(math.fsum(value * value for value in vector)), 1e-6) for vector in vectors]
        vectors = [[value / size for value in vector] for vector, size in zip(vectors, lengths, strict=True)]
    return vectors
