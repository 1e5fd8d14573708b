"""The baseline losses a second time, from their papers, in plain loops over numbers."""

from __future__ import annotations

import math

import numpy as np


def huber(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def fitnet(s, t, weight, bias):
    errors = [(t[k] - (weight @ s[k] + bias)) ** 2 for k in range(len(s))]
    return float(np.mean(errors))


def attention(s, t):
    total, (n, _, p) = 0.0, s.shape
    for k in range(n):
        sides = []
        for maps in (s[k], t[k]):
            q = np.array([sum(channel[i] ** 2 for channel in maps) for i in range(p)])
            sides.append(q / math.sqrt((q**2).sum()))
        total += ((sides[0] - sides[1]) ** 2).sum()
    return total / (n * p)


def nst(s, t):
    def kernel(xs, ys):
        values = [float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y))) ** 2 for x in xs for y in ys]
        return sum(values) / len(values)

    return float(np.mean([kernel(a, a) + kernel(b, b) - 2 * kernel(a, b) for a, b in zip(s, t, strict=True)]))


def rkd(s, t, distance_weight=1.0, angle_weight=2.0):
    n = len(s)

    def distances(x):
        found = {(i, j): np.linalg.norm(x[i] - x[j]) for i in range(n) for j in range(n) if i != j}
        mean = sum(found.values()) / len(found)
        return {pair: value / mean for pair, value in found.items()}

    def angle(x, i, j, k):
        a, b = x[i] - x[j], x[k] - x[j]
        return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))

    ours, theirs = distances(s), distances(t)
    distance = np.mean([huber(ours[pair] - theirs[pair]) for pair in ours])
    triples = [(i, j, k) for i in range(n) for j in range(n) for k in range(n) if len({i, j, k}) == 3]
    angles = np.mean([huber(angle(s, *triple) - angle(t, *triple)) for triple in triples])
    return float(distance_weight * distance + angle_weight * angles)


def similarity(s, t):
    n = len(s)
    tables = []
    for x in (s, t):
        rows = [[float(x[i] @ x[j]) for j in range(n)] for i in range(n)]
        tables.append([[value / math.sqrt(sum(v * v for v in row)) for value in row] for row in rows])
    return sum((tables[0][i][j] - tables[1][i][j]) ** 2 for i in range(n) for j in range(n)) / n**2


def cka(s, t):
    """By Hilbert-Schmidt independence: tr(K H L H), H the matrix that centres."""
    n = len(s)
    h = np.eye(n) - np.ones((n, n)) / n

    def hsic(k, l):
        return np.trace(k @ h @ l @ h)

    k, l = s @ s.T, t @ t.T
    return 1 - hsic(k, l) / math.sqrt(hsic(k, k) * hsic(l, l))


def crd(s, t, student_weight, student_bias, teacher_weight, teacher_bias, temperature=0.07):
    n = len(s)

    def embed(x, weight, bias):
        y = weight @ x + bias
        return y / np.linalg.norm(y)

    u = [embed(x, student_weight, student_bias) for x in s]
    v = [embed(x, teacher_weight, teacher_bias) for x in t]
    total = 0.0
    for anchors, others in ((u, v), (v, u)):
        for k in range(n):
            scores = [math.exp(anchors[k] @ other / temperature) for other in others]
            total -= math.log(scores[k] / sum(scores))
    return total / n


def wkd(s, t, weight, bias, mean_weight=2.0, floor=1e-5):
    total = 0.0
    for maps, target in zip(s, t, strict=True):
        projected = np.stack([weight @ maps[:, i] + bias for i in range(maps.shape[1])], axis=1)
        for ours, theirs in zip(projected, target, strict=True):
            total += mean_weight * (ours.mean() - theirs.mean()) ** 2
            deviations = [math.sqrt(((x - x.mean()) ** 2).mean() + floor) for x in (ours, theirs)]
            total += (deviations[0] - deviations[1]) ** 2
    return total / len(s)


def delta(s, t, attention):
    n, channels, p = s.shape
    total = 0.0
    for k in range(n):
        for j in range(channels):
            total += 0.5 * channels * attention[j] * ((s[k, j] - t[k, j]) ** 2).sum() / p
    return total / n


def bss(features, k):
    eigenvalues = sorted(np.linalg.eigvalsh(features @ features.T if len(features) < features.shape[1] else
                                            features.T @ features))  # fmt: skip
    return sum(eigenvalues[:k])


def dkd(student, teacher, labels, alpha, beta, temperature):
    def softmax(x):
        e = np.exp(x / temperature)
        return e / e.sum()

    def kl(p, q):
        return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))

    total = 0.0
    for s, t, label in zip(student, teacher, labels, strict=True):
        ps, pt = softmax(s), softmax(t)
        binary = [(p[label], 1 - p[label]) for p in (ps, pt)]
        others = [np.delete(p, label) / (1 - p[label]) for p in (ps, pt)]
        total += alpha * kl(binary[1], binary[0]) + beta * kl(others[1], others[0])
    return temperature**2 * total / len(student)


def rsd(s, t, first, gain, shift, last, kappa=0.01):
    n = len(s)
    hidden = np.array([first @ row for row in s])
    hidden = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5) * gain + shift
    active = np.array([[0.5 * x * (1 + math.erf(x / math.sqrt(2))) for x in row] for row in hidden])
    z = np.array([last @ row for row in active])
    z, t = ((x - x.mean(0)) / (x.std(0) + 1e-5) for x in (z, t))
    total = 0.0
    for i in range(t.shape[1]):
        for j in range(z.shape[1]):
            c = sum(t[k, i] * z[k, j] for k in range(n)) / n
            total += (1 - c) ** 2 if i == j else kappa * c**2
    return total / t.shape[1]
