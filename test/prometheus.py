"""Prometheus' text form, read strictly: what is not as the format and its naming conventions have it is an error."""
import math
import re
import typing


class Family(typing.NamedTuple):
    kind: str
    help: str
    # By name and labels, which are pairs in the order of their names.
    samples: dict


SAMPLE = re.compile(r"([a-z_]+)(?:\{([^{}]*)\})? (\S+)")
LABEL = re.compile(r'([a-z_]+)="([^"\\]*)"')
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}


def parse(text):
    """Families by name."""
    families = {}
    if not text.endswith("\n"):
        raise ValueError("no newline at the end")
    lines = iter(text.splitlines())
    family = None
    for line in lines:
        if line.startswith("# HELP "):
            _, _, name, help = line.split(" ", 3)
            mark, word, again, kind = next(lines).split(" ")
            if (mark, word, again) != ("#", "TYPE", name) or name in families or not help.endswith("."):
                raise ValueError(f"{name}: HELP, then TYPE, once, with a sentence")
            if name.endswith("_total") != (kind == "counter") or re.search("_(count|sum|bucket)$", name):
                raise ValueError(f"{name}: no name for a {kind}")
            family = families[name] = Family(kind, help, {})
            continue
        match = SAMPLE.fullmatch(line)
        if not match or not family:
            raise ValueError(f"no sample: {line}")
        sample, labels, value = match.groups()
        name = next(reversed(families))
        if sample not in (name + suffix for suffix in SUFFIXES[family.kind]):
            raise ValueError(f"{sample} is not of {name}")
        pairs = tuple(sorted(LABEL.findall(labels or "")))
        if labels and ",".join(f'{k}="{v}"' for k, v in LABEL.findall(labels)) != labels:
            raise ValueError(f"no labels: {line}")
        if (sample, pairs) in family.samples:
            raise ValueError(f"twice: {line}")
        family.samples[sample, pairs] = float(value)
    for name, family in families.items():
        if not family.samples:
            raise ValueError(f"{name}: no samples")
        if family.kind == "histogram":
            check_histogram(name, family.samples)
        elif min(family.samples.values()) < 0:
            raise ValueError(f"{name}: negative")
    return families


def check_histogram(name, samples):
    series = {}
    for (sample, labels), value in samples.items():
        bounds = [float(bound) for label, bound in labels if label == "le"]
        rest = tuple(pair for pair in labels if pair[0] != "le")
        of = series.setdefault(rest, {"buckets": []})
        if sample == f"{name}_bucket":
            [bound] = bounds
            of["buckets"].append((bound, value))
        else:
            of[sample] = value
    for labels, of in series.items():
        buckets = of["buckets"]
        if buckets != sorted(buckets) or [count for _, count in buckets] != sorted(count for _, count in buckets):
            raise ValueError(f"{name}{labels}: buckets do not rise: {buckets}")
        if buckets[-1] != (math.inf, of[f"{name}_count"]) or of[f"{name}_sum"] < 0:
            raise ValueError(f"{name}{labels}: {buckets[-1]}, count and sum do not belong together")


def values(text):
    """Sums over all labels but `le`, and single samples as `name{label=value}`."""
    found = {}
    for family in parse(text).values():
        for (name, labels), value in family.samples.items():
            if name.endswith("_bucket"):
                continue
            found[name] = found.get(name, 0) + value
            if labels:
                found[name + "{" + ",".join(f"{k}={v}" for k, v in labels) + "}"] = value
    return found
