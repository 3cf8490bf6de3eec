"""Tables 6 and 7: size, latency and memory traffic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from intseg.tools.measure.tables.markdown import command, prose, table
from intseg.tools.measure.tables.results import MISSING, PAPER_TRAFFIC, PEERS, Document, Results


def table_6(results: Results) -> Iterator[str]:
    """Size and latency."""
    yield "## Table 6: size and latency"
    yield ""
    sizes = results.sizes["results"]["sizes"] if results.sizes else {}
    yield from command([results.sizes["command"]] if results.sizes else [])
    names = list(PAPER_TRAFFIC)
    rows = []
    for title, key in (("FP32 parameters, MB", "float_bytes"), ("intseg, MB", "integer_bytes")):
        rows.append([title, *(f"{sizes[name][key] / 1e6:.2f}" if name in sizes else MISSING for name in names)])
    ratios = [
        f"{sizes[name]['float_bytes'] / sizes[name]['integer_bytes']:.2f}" if name in sizes else MISSING
        for name in names
    ]
    rows.append(["times smaller (paper: 3.2 to 3.8)", *ratios])
    yield "150 classes, 512 x 512; MB = 10^6 bytes. The converted checkpoints, scales and header included:"
    yield ""
    files = []
    for name, found in results.each("ptq"):
        row = next((row for row in found["rows"] if row["recipe"] == "intseg"), None)
        if row is None:
            continue
        ratio = found["float_bytes"] / row["bytes"]
        files.append([name, f"{found['float_bytes'] / 1e6:.2f}", f"{row['bytes'] / 1e6:.2f}", f"{ratio:.2f}"])
    yield from table(("checkpoint", "FP32, MB", "intseg, MB", "times smaller"), files)
    yield from table(("size", *names), rows)
    yield from _latency(results)


def _latency(results: Results) -> Iterator[str]:
    bench = results.bench["results"] if results.bench else {}
    names = [name for name in PAPER_TRAFFIC if name in bench] or list(PAPER_TRAFFIC)
    yield "Latency of one image, whole image to labels, one thread of one CPU, in ms (`python tools/measure/bench.py"
    yield "--models tiny,small,base --threads 1,2 --numpy --json docs/results/bench.json`;"
    yield "[PERFORMANCE.md](PERFORMANCE.md) says how):"
    yield ""

    def entry(name: str) -> Document:
        found: Document = bench.get(name, {}).get("1", {})
        return found

    def cell(value: float | None) -> str:
        return MISSING if value is None else f"{value:.1f}"

    measured = {peer for name in names for peer in entry(name).get("peers_ms", {})}
    shown = [(peer, title) for peer, title in PEERS if peer in measured or not bench]
    rows = [[title, *(cell(entry(n).get("peers_ms", {}).get(peer)) for n in names)] for peer, title in shown]
    rows += [["intseg, numba", *(cell(entry(name).get("intseg_ms")) for name in names)]]
    rows += [["intseg, numpy (the definition)", *(cell(entry(name).get("numpy_ms")) for name in names)]]
    yield from table(("backend", *names), rows)
    if results.bench:
        machine = results.bench["machine"]
        yield from prose(f"""
            On {machine["cpu"]} ({machine["path"]}), PyTorch {machine.get("torch", "?")}, ONNX Runtime
            {machine.get("onnxruntime", "?")}. The paper's integer-only row (TVM on an A100) is 1.14 times slower than
            FP32 for Tiny and 1.25 times faster for Large.
        """)
        absent = [title for peer, title in PEERS if peer not in measured]
        if absent:
            yield from prose(f"Not measured in that run: {', '.join(absent)}.")


def table_7(results: Results) -> Iterator[str]:
    """Memory traffic."""
    yield "## Table 7: memory traffic"
    yield ""
    if results.sizes is None:
        yield f"{MISSING.capitalize()}."
        yield ""
        return
    yield from command([results.sizes["command"]])
    document = results.sizes["results"]
    bits, found = document["bits_per_mac"], document["sizes"]
    names = [name for name in PAPER_TRAFFIC if name in found]
    yield from prose(f"""
        10^12 bits for one image of 512 x 512 with 150 classes. The paper's numbers are those of a machine without any
        reuse: {bits["fp32"]} bits for every multiply-accumulate in FP32, {bits["int8 linear"]} in INT8 linear layers
        and about {bits["int8 attention"]} in the products of attention give its four sizes.
    """)
    rows = [["GMAC, linear", *(f"{found[n]['linear_macs'] / 1e9:.2f}" for n in names)]]
    rows += [["GMAC, attention and masks", *(f"{found[n]['product_macs'] / 1e9:.2f}" for n in names)]]
    rows += [["FP32, paper", *(f"{PAPER_TRAFFIC[n][0]:.2f}" for n in names)]]
    counted = {n: formula(found[n], bits) for n in names}
    rows += [["FP32, the formula", *(f"{counted[n][0]:.2f}" for n in names)]]
    rows += [["INT8, paper", *(f"{PAPER_TRAFFIC[n][1]:.2f}" for n in names)]]
    rows += [["INT8, the formula", *(f"{counted[n][1]:.2f}" for n in names)]]
    rows += [["INT8, node by node", *(f"{8e-12 * found[n]['traffic']['node_by_node']:.5f}" for n in names)]]
    fused = {n: sum(found[n]["traffic"][key] for key in ("weights", "read", "written")) for n in names}
    rows += [["**the engine's plan**", *(f"**{8e-12 * fused[n]:.5f}**" for n in names)]]
    rows += [["times less than the paper's INT8", *(f"{PAPER_TRAFFIC[n][1] / (8e-12 * fused[n]):.0f}" for n in names)]]
    yield from table(("", *names), rows)
    yield from _fewer_bits({name: found[name].get("bits", {}) for name in names})
    yield from _needs({name: found[name]["traffic"] for name in names})


def _fewer_bits(counted: Mapping[str, Document]) -> Iterator[str]:
    """BitOps, traffic and size where weights and activations have fewer bits."""
    ways = next(iter(counted.values()), {})
    if not ways:
        return
    yield "Weights of linear layers and INT8 activations in fewer bits, each counted with the bits that it has:"
    yield ""
    rows = []
    for way in ways:
        title = f"W{way[1]} A{way[3]}"
        rows += [[f"{title}, 10^12 BitOps", *(f"{its[way]['bitops'] / 1e12:.2f}" for its in counted.values())]]
        rows += [[f"{title}, node by node", *(f"{its[way]['moved'] / 1e12:.5f}" for its in counted.values())]]
        rows += [[f"{title}, MB of parameters", *(f"{its[way]['bytes'] / 1e6:.2f}" for its in counted.values())]]
    yield from table(("", *counted), rows)


NEEDS = {
    "weights": "weights",
    "activations read": "read",
    "activations written": "written",
    "all buffers at once": "workspace",
    "scratch of a thread": "scratch",
}
"""What the engine's plan is counted by."""


def _needs(traffic: Mapping[str, Document]) -> Iterator[str]:
    """What one window needs, by size of the model."""
    rows = [[title, *(f"{its[key] / 1e6:.2f}" for its in traffic.values())] for title, key in NEEDS.items()]
    yield "What the engine needs, in MB for one window:"
    yield ""
    yield from table(("", *traffic), rows)
    scratch = max(its["scratch"] for its in traffic.values()) / 1e6
    small = [name for name, its in traffic.items() if its["workspace"] < 32e6] or ["none"]
    yield from prose(f"""
        *Node by node* reads every input and writes every output of every node once, and every weight once. The engine's
        plan has fewer buffers: a strip of attention (scores, probabilities, context) stays in the scratch of a thread,
        at most {scratch:.2f} MB, which is to lie in a cache of the second level. All buffers together fit a cache of 32
        MB for: {", ".join(small)}; then little but weights and image comes from memory. The counts are of the graph and
        its plan, not of a machine: an image of several windows reads the weights once per window, and a matrix product
        reads its operands again from a cache as often as its tiles need them.
    """)


def formula(entry: Document, bits: Document) -> tuple[float, float]:
    """10^12 bits in FP32 and INT8."""
    linear, products = entry["linear_macs"], entry["product_macs"]
    integer = bits["int8 linear"] * linear + bits["int8 attention"] * products
    return 1e-12 * bits["fp32"] * (linear + products), 1e-12 * integer
