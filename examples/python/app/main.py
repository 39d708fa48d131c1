"""Summarises a CSV file: for each column its numbers' count, mean and median, as JSON."""
import csv
import json
import statistics
import sys


def summary(rows):
    columns = {}
    for row in rows:
        for name, text in row.items():
            try:
                columns.setdefault(name, []).append(float(text))
            except ValueError:
                columns.setdefault(name, [])
    return {
        name: {"count": len(numbers), "mean": round(statistics.mean(numbers), 3), "median": statistics.median(numbers)}
        for name, numbers in columns.items() if numbers
    }


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: main.py FILE.csv")
    try:
        with open(sys.argv[1], newline="") as f:
            print(json.dumps(summary(csv.DictReader(f)), indent=1))
    except OSError as error:
        sys.exit(f"{error.filename}: {error.strerror}")


main()
