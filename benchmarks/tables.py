"""The results as tables."""

from typing import Any

from rich.console import Console
from rich.table import Table


def print_machine(console: Console, machine: dict[str, Any]) -> None:
    peak = ", ".join(f"{name} {_tera(value)}" for name, value in machine["matmul_peak_flop_per_second"].items())
    console.print(f"{machine['name']}: {machine['threads']} threads, load {machine['load_average_at_start']:.1f}")
    console.print(f"matrix product, TFLOP/s: {peak}")


def print_part(console: Console, part: str, results: dict[str, Any]) -> None:
    measured = results["parts"][part]
    if part == "training":
        _print_rates(console, {"training step": measured})
        for name, rate in measured["variants_tokens_per_second"].items():
            console.print(f"{name}: {rate:,.0f} tokens/s")
    elif part == "evaluation":
        rows = {f"evaluation, stride {stride}": row for stride, row in measured["strides"].items()}
        _print_rates(console, rows)
        for stride, row in measured["strides"].items():
            if "all" in row:
                console.print(
                    f"stride {stride}: {row['all']['documents']:,} documents in {row['all']['seconds']:.1f} s "
                    f"({row['all']['tokens_per_second']:,.0f} tokens/s, "
                    f"{row['all']['share_of_matmul_peak']:.0%} of peak); reference, scaled by window positions: "
                    f"{row['all']['reference_seconds_scaled_by_window_positions']:.0f} s"
                )
    elif part == "coding":
        _print_coding(console, measured)
    elif part == "data":
        _print_data(console, measured)
    else:
        table = Table("workflow", "seconds", title=None)
        for name, seconds in measured["seconds"].items():
            table.add_row(name, f"{seconds:.1f}")
        console.print(table)


def _print_rates(console: Console, rows: dict[str, dict[str, Any]]) -> None:
    table = Table("", "tokens/s", "reference", "ratio", "of CPU time", "TFLOP/s", "of peak", "memory MiB", "reference")
    for name, row in rows.items():
        product, reference = row["product"], row["reference"]
        table.add_row(
            f"{name} ({product['dtype']})",
            f"{product['tokens_per_second']:,.0f}",
            f"{reference['tokens_per_second']:,.0f}",
            f"{row['ratio']:.2f}",
            f"{row['ratio_of_cpu_time']:.2f}",
            _tera(product["flop_per_second"]),
            f"{product['share_of_matmul_peak']:.0%}",
            f"{product['memory_mib']:,.0f}",
            f"{reference['memory_mib']:,.0f}",
        )
    console.print(table)


def _print_coding(console: Console, measured: dict[str, Any]) -> None:
    table = Table("coding", "quantize ms", "encode ms", "decode ms", "payload bits")
    for quantizer in ("plain", "entropy"):
        for budget, row in measured[quantizer].items():
            times = [f"{row[key]:.2f}" for key in ("quantize_ms", "encode_ms", "decode_ms")]
            table.add_row(f"{quantizer}, d = {budget}", *times, f"{row['payload_bits']:,}")
    console.print(table)


def _print_data(console: Console, measured: dict[str, Any]) -> None:
    rates = measured["rates"]
    console.print(
        f"tokenizing on one thread: {rates['product']['tokens_per_second']:,.0f} tokens/s, tiktoken's "
        f"encode_ordinary_batch {rates['reference']['tokens_per_second']:,.0f}: ratio {rates['ratio']:.2f}, "
        f"of CPU time {rates['ratio_of_cpu_time']:.2f}; encode_ordinary_batch on {measured['workers']} threads "
        f"{rates['reference_on_all_threads_tokens_per_second']:,.0f}"
    )
    table = Table("preparing", "tokens/s", "tokens per CPU second", "peak MiB", "largest worker MiB")
    for row in measured["sizes"]:
        table.add_row(
            f"{row['tokens']:,} tokens, {measured['workers']} processes",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['tokens_per_cpu_second']:,.0f}",
            f"{row['peak_memory_mib']:,.0f}",
            f"{row['largest_worker_memory_mib']:,.0f}",
        )
    console.print(table)


def _tera(flop_per_second: float) -> str:
    return f"{flop_per_second / 1e12:.3g}"


def gpu_markdown(results: dict[str, Any]) -> str:
    """The results of `make gpu` in Markdown: what became of each part, speeds, runs."""
    machine, parts = results["machine"], results["parts"]
    versions = machine["versions"]
    driver = (machine.get("driver") or {}).get("driver_version")
    facts = [
        f"{(machine['gpu'] or {}).get('name', machine['cpu'])}, torch {versions['torch']}",
        *([f"driver {driver}"] if driver else []),
        f"{machine['cores']} cores ({machine['cpu']})" if machine["gpu"] else f"{machine['threads']} threads",
        f"{results['minutes']:g} minutes planned",
    ]
    lines = [f"{', '.join(facts)}.", "", "| part | outcome | seconds |", "|---|---|---|"]
    for name, part in parts.items():
        lines.append(f"| {name} | {_of_part(part)} | {part.get('seconds', 0.0):.0f} |")
    lines += _gpu_speeds(parts.get("timing", {}).get("rows", {}))
    lines += _gpu_runs([parts[name] for name in ("uniform", "learned") if name in parts])
    return "\n".join(lines) + "\n"


def _of_part(part: dict[str, Any]) -> str:
    """The outcome, and what a table of its own does not show."""
    facts = [part["outcome"].replace("|", "/")]
    if "counts" in part:
        facts.append(", ".join(f"{count} {name}" for name, count in part["counts"].items() if count))
    for where in ("cuda", "cpu"):
        if f"verdict_on_{where}" in part:
            facts.append(f"{where}: {part[f'verdict_on_{where}']['verdict']}")
    if "same_bytes" in part:
        facts.append("same bytes" if part["same_bytes"] else "other bytes")
    return "; ".join(filter(None, facts))


def _gpu_speeds(rows: dict[str, dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    lines = ["", "| | tokens/s | reference (float32) | ratio | TFLOP/s | memory MiB | reference |", "|" + "---|" * 7]
    for name, row in rows.items():
        if "error" in row:
            lines.append(f"| {name} | {row['error']} | | | | | |")
            continue
        product, reference = row["product"], row["reference"]
        rates = f"{product['tokens_per_second']:,.0f} | {reference['tokens_per_second']:,.0f} | {row['ratio']:.2f}"
        memory = f"{product['memory_mib']:,.0f} | {reference['memory_mib']:,.0f}"
        lines.append(f"| {name} | {rates} | {_tera(product['flop_per_second'])} | {memory} |")
    return lines


def _gpu_runs(runs: list[dict[str, Any]]) -> list[str]:
    """One row per run that has a bound; losses and bounds in bits per token."""
    done = [run for run in runs if "bounds" in run]
    if not done:
        return []
    columns = ("run", "steps", "tokens/s", "loss", "bound", "all runs", "held out", "test loss", "by source", "C, bits")
    lines = ["", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for run in done:
        bounds = run["bounds"]
        keys = ("empirical_bpd", "bound_value", "bound_all_runs", "bound_held_out", "test_loss_bits")
        by_source = (bounds["by_source"] or {}).get("bound")
        cells = [run["run"], f"{run['steps']:,}", f"{run['tokens_per_second']:,.0f}"]
        cells += [f"{bounds[key]:.3f}" for key in keys]
        cells += ["" if by_source is None else f"{by_source:.3f}", f"{bounds['code_bits']:,.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines
