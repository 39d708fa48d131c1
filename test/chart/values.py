"""The chart's values as a table for its README: a row for each value that values.yaml describes."""
import json
import re

import yaml


def rows(text):
    """Path, default and description of each value that has a comment `# -- …` above it."""
    defaults, found, path, comment = yaml.safe_load(text), [], [], None
    for line in text.splitlines():
        if said := re.match(r" *# -- (.*)", line):
            comment = [said.group(1)]
        elif comment and (more := re.match(r" *# (.*)", line)):
            comment.append(more.group(1))
        elif key := re.match(r"( *)([A-Za-z_]+):", line):
            path[len(key.group(1)) // 2:] = [key.group(2)]
            if comment:
                found.append((".".join(path), lookup(defaults, path), " ".join(comment)))
            comment = None
    return found


def lookup(values, path):
    for key in path:
        values = values[key]
    return values


def leaves(values, path=()):
    """The paths of all values that are not objects of further ones."""
    if isinstance(values, dict) and values:
        return [leaf for key, value in values.items() for leaf in leaves(value, (*path, key))]
    return [".".join(path)]


def table(text):
    lines = ["| value | default | what |", "|---|---|---|"]
    for path, default, description in rows(text):
        lines.append(f"| `{path}` | `{json.dumps(default)}` | {description.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"
