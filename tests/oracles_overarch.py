"""OverArch scores in float64 with plain loops, straight from the formulas and the names of the weights."""

from __future__ import annotations

import math

import numpy as np


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0


def silu(value: float) -> float:
    return value * sigmoid(value)


def gelu(value: float) -> float:
    return value * 0.5 * (1 + math.erf(value / math.sqrt(2)))


def relu(value: float) -> float:
    return max(value, 0.0)


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    powers = [math.exp(value - top) for value in values]
    return [power / math.fsum(powers) for power in powers]


def linear(weights, name: str, inputs: list[float]) -> list[float]:
    matrix, bias = weights[f"{name}.weight"], weights.get(f"{name}.bias")
    return [
        math.fsum(float(a) * b for a, b in zip(line, inputs, strict=True)) + (0.0 if bias is None else float(bias[i]))
        for i, line in enumerate(matrix)
    ]


def unit(values: list[float]) -> list[float]:
    length = max(math.sqrt(math.fsum(value * value for value in values)), 1e-6)
    return [value / length for value in values]


def gate(weights, name: str, inputs: list[float]) -> list[float]:
    return linear(weights, f"{name}.2", [silu(value) for value in linear(weights, f"{name}.0", inputs)])


def query_components(config, weights, task: str, user: list[float]) -> list[list[float]]:
    if config.query_hidden:
        act = gelu if config.query_activation == "geglu" else silu
        both = linear(weights, f"tasks.{task}.query.glu", user)
        half = config.query_hidden
        user = [act(both[i]) * both[half + i] for i in range(half)]
    flat, size = linear(weights, f"tasks.{task}.query.projection", user), config.component_dim
    return [unit(flat[n * size : (n + 1) * size]) for n in range(config.query_components)]


def item_components(config, weights, item: list[float]) -> list[list[float]]:
    flat, size = linear(weights, "item.projection", item), config.component_dim
    return [unit(flat[m * size : (m + 1) * size]) for m in range(config.item_components)]


def mixture(logits: list[float], query_gate, item_gate, cross_gate) -> float:
    """The score from the logits and the three gates, each a list or None."""
    gates = []
    for place in range(len(logits)):
        value = 0.0
        if query_gate is not None or item_gate is not None:
            value = (1.0 if query_gate is None else query_gate[place]) * (
                1.0 if item_gate is None else item_gate[place]
            )
        if cross_gate is not None:
            value += cross_gate[place]
        gates.append(silu(value))
    return math.fsum(share * logit for share, logit in zip(softmax(gates), logits, strict=True))


def mol(config, weights, task: str, user: np.ndarray, item: np.ndarray) -> float:
    """The Mixture-of-Logits score of one user and one item; weights as numpy arrays by name."""
    user, item = [float(value) for value in user], [float(value) for value in item]
    queries, items = query_components(config, weights, task, user), item_components(config, weights, item)
    logits = [
        math.fsum(a * b for a, b in zip(f, g, strict=True)) / config.tau for f in queries for g in items
    ]  # query component first: logit n * Px + m
    return mixture(
        logits,
        gate(weights, f"tasks.{task}.query.gate", user) if "query" in config.gates else None,
        gate(weights, "item.gate", item) if "item" in config.gates else None,
        gate(weights, f"tasks.{task}.cross", logits) if "cross" in config.gates else None,
    )


def mlp(config, weights, task: str, user: np.ndarray, item: np.ndarray) -> float:
    """The score of layers over [user, item, user * item, features]."""
    embedding, features = item[: config.dim], item[config.dim :]
    product = [float(a) * float(b) for a, b in zip(user, embedding, strict=True)]
    values = [float(value) for value in (*user, *embedding, *product, *features)]
    act = {"relu": relu, "silu": silu, "gelu": gelu}[config.activation]
    for layer in range(len(config.hidden)):
        values = [act(value) for value in linear(weights, f"tasks.{task}.layers.{layer}", values)]
    return linear(weights, f"tasks.{task}.layers.{len(config.hidden)}", values)[0]
