"""Compile targets x threads x fused and unfused: one digest per node, and the instructions each target really got."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from matrix_run import float_lines

pytest.importorskip("numba")
from llvmlite import binding, ir
from numba.core.registry import cpu_target

import intseg.plan.plan  # noqa: F401 - registers every kernel
from intseg.kernels import _isa, _jit, _tile

RUN = Path(__file__).with_name("matrix_run.py")
X86 = _isa.current_target()[0].startswith("x86_64")
HAVE = set(_isa.current_target()[2].split(","))

# Cell -> (features of this CPU it needs, NUMBA_CPU_NAME, forced path, expected path, must occur, must not occur).
CELLS: dict[str, tuple[set[str], str, str, str, set[str], set[str]]] = {
    "skylake-avx512": (
        {"+avx512bw", "+avx512vl"}, "skylake-avx512", "", "avx512bw", {"zmm", "vpmaddwd"}, {"vpdpbusd", "vpermi2b"},
    ),
    "haswell": ({"+avx2"}, "haswell", "", "avx2", {"ymm", "vpmaddwd"}, {"zmm", "vpdpbusd"}),
    "x86-64-v2": ({"+sse4.2"}, "x86-64-v2", "", "sse2", {"pmaddwd"}, {"ymm", "zmm", "vpdpbusd", "vpmaddwd"}),
    "generic": (set(), "generic", "", "sse2", {"pmaddwd"}, {"ymm", "zmm", "vpdpbusd", "vpmaddwd"}),
    "plain IR": (set(), "", "generic", "generic", set(), {"vpdpbusd", "vpermi2b"}),
    # Paths of AArch64 with plain IR in place of their instruction: layouts, packing and what makes up for signed bytes.
    "as dotprod": (set(), "", "dotprod", "dotprod", set(), {"vpermi2b"}),
    "as i8mm": (set(), "", "i8mm", "i8mm", set(), {"vpermi2b"}),
}  # fmt: skip


def run_cell(name: str, cache: Path) -> dict[str, Any]:
    """The report of one subprocess."""
    environment = dict(os.environ, INTSEG_CACHE_DIR=str(cache))
    cpu, path = CELLS[name][1:3] if name != "host" else ("", "")
    if cpu:
        environment |= {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": ""}
    done = subprocess.run(
        [sys.executable, str(RUN), path], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{name}: {done.stderr[-2000:]}"
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Reports of the cells that this CPU can run."""
    names = ["host", *(name for name, cell in CELLS.items() if (X86 and cell[0] <= HAVE) or not cell[1])]
    folders = [tmp_path_factory.mktemp("cache") for _ in names]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(names, pool.map(run_cell, names, folders), strict=True))


def test_every_cell_gives_the_same_digest_at_every_node(reports: dict[str, dict[str, Any]]) -> None:
    expected = reports["host"]["digests"]["unfused"] | {"labels": reports["host"]["digests"]["fused 1"]["labels"]}
    compared = 0
    for name, report in reports.items():
        assert report["digests"]["unfused"].keys() == expected.keys() - {"labels"}
        for mode, digests in report["digests"].items():
            shared = digests.keys() & expected.keys()
            assert len(shared) > len(expected) // 2
            for node in shared:
                assert digests[node] == expected[node], f"{node} differs: target {name}, {mode}"
            compared += len(shared)
    print(f"{compared} digests in {len(reports)} targets x 4 modes agree")


@pytest.mark.parametrize("name", CELLS)
def test_the_assembly_is_that_of_the_target(name: str, reports: dict[str, dict[str, Any]]) -> None:
    if name not in reports:
        pytest.skip("this CPU cannot run the target")
    report, (_, cpu, _, path, present, absent) = reports[name], CELLS[name]
    assert report["isa"] == path
    assert not cpu or report["target"] == cpu
    for word in present:
        assert report["assembly"][word] > 0, f"{word} is missing"
    for word in absent:
        assert report["assembly"][word] == 0, f"{word} is there"
    # Plain IR names no instruction of a CPU; what LLVM makes of it is its own choice, vpdpwssd too.
    if path == "generic":
        assert report["intrinsics"] == []


def test_the_host_uses_the_best_it_has(reports: dict[str, dict[str, Any]]) -> None:
    if "+avx512vnni" in HAVE:
        assert reports["host"]["isa"] == "vnni"
        assert reports["host"]["assembly"]["vpdpbusd"] >= 24


def test_no_kernel_of_any_target_has_a_float_instruction(reports: dict[str, dict[str, Any]]) -> None:
    kernels = {n for n in _jit.REGISTRY if not n.startswith("test_")}
    for name, report in reports.items():
        assert set(report["kernels"]) == kernels, name
        assert report["floats"] == {}, name
    print(f"{len(kernels)} kernels on {len(reports)} targets without a float instruction")


def test_the_search_for_floats_finds_one() -> None:
    assert float_lines('define i64 @"double"(i64 %float) {\n  %double.1 = add i64 %float, 1\n}\n') == []
    found = float_lines("define i64 @f(i64 %a) {\n  %x = sitofp i64 %a to double\n  ret i64 0\n}\n")
    assert len(found) == 1


def halve(values: Any) -> None:
    """What a kernel must not do: the float lives for one instruction."""
    for i in range(values.shape[0]):
        values[i] = int(values[i] * 0.5)


def test_the_search_for_floats_finds_one_in_a_compiled_kernel() -> None:
    lines = float_lines(_jit.Kernel(halve, "void(int64[::1])").llvm())
    assert any("fmul" in line for line in lines)
    assert any("double" in line for line in lines)


# Targets this machine is not


class OtherTarget:
    """Stands for Numba's context where only the target is asked for."""

    def __init__(self, *target: str) -> None:
        self.target = target

    def codegen(self) -> Any:
        return self

    def magic_tuple(self) -> tuple[str, ...]:
        return self.target


def tile_module(triple: str, cpu: str, features: str) -> ir.Module:
    """The register tile for any target, as IR."""
    from intseg.kernels._ir import I64, Emit

    module = ir.Module("tile")
    module.triple = triple
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * 10), "tile")
    builder = ir.IRBuilder(function.append_basic_block())
    e = Emit(OtherTarget(triple, cpu, features), builder)
    _tile._emit_tile(e, e.dot8, e.isa.vectors, *function.args)
    builder.ret_void()
    return module


def emit_tile(triple: str, cpu: str, features: str) -> str:
    """Assembly of the register tile for any target."""
    module = tile_module(triple, cpu, features)
    machine = binding.Target.from_triple(triple).create_target_machine(cpu=cpu, features=features, opt=3)
    return str(machine.emit_assembly(binding.parse_assembly(str(module))))


ARM = "aarch64-unknown-linux-gnu"


@pytest.fixture
def arm() -> None:
    """Skip the test where LLVM was built without the target."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    try:
        binding.Target.from_triple(ARM)
    except RuntimeError:
        pytest.skip(f"this build of LLVM has no {ARM}")


DOTPROD = ("neoverse-n1", "neoverse-e1", "cortex-a76", "cortex-a55", "apple-m1", "cortex-x1", "tsv110")
I8MM = ("neoverse-v1", "neoverse-v2", "neoverse-n2", "cortex-a710", "cortex-x2", "apple-m2", "ampere1")


@pytest.mark.parametrize(("cpu", "path"), [*((cpu, "dotprod") for cpu in DOTPROD), *((cpu, "i8mm") for cpu in I8MM)])
def test_a_processor_is_known_by_its_name(arm: None, cpu: str, path: str) -> None:
    """llvmlite does not list +dotprod for hosts that have it; LLVM knows it from the name, so `sdot` is emitted."""
    assert _isa.choose((ARM, cpu, "+neon")).name == path
    assert emit_tile(ARM, cpu, "+neon").count({"dotprod": "\tsdot\t", "i8mm": "\tsmmla\t"}[path]) == 24
    assert _isa.choose((ARM, cpu, "+neon,-i8mm")).name == "dotprod"
    assert _isa.choose((ARM, cpu, "+neon,-i8mm,-dotprod")).name == "generic"


def test_dot_products_by_feature_alone(arm: None) -> None:
    assert emit_tile(ARM, "generic", "+neon,+dotprod").count("\tsdot\t") == 24
    assert "sdot" not in emit_tile(ARM, "generic", "+neon")
    assert _isa.choose((ARM, "cortex-a53", "+neon")).name == "generic"


def loop_length(assembly: str, word: str) -> int:
    """Instructions of the loop that holds an instruction most often, its branch back included."""
    block = max(re.split(r"^\.L\w+:.*$", assembly, flags=re.M), key=lambda text: text.count(f"\t{word}\t"))
    instructions = re.findall(r"^\t([a-z][\w.]*)", block, re.M)
    return 1 + next(i for i, name in enumerate(instructions) if name.startswith("b."))


def test_matrix_products_take_fewer_instructions_than_dot_products(arm: None) -> None:
    """For 6 rows x 16 columns x 8 operands: one turn of the loop with smmla, two with sdot; nothing is spilled."""
    smmla = loop_length(emit_tile(ARM, "neoverse-v1", "+neon"), "smmla")
    sdot = 2 * loop_length(emit_tile(ARM, "neoverse-n1", "+neon"), "sdot")
    print(f"smmla {smmla}, sdot {sdot} instructions")
    assert smmla < 48 < sdot


TARGETS = [
    (("x86_64-unknown-linux-gnu", "znver4", "+avx2,+avx512f,+avx512bw,+avx512vl,+avx512dq,+avx512vnni"), "vnni"),
    (
        ("x86_64-unknown-linux-gnu", "znver4", "+avx2,+avx512f,+avx512bw,+avx512vl,+avx512dq,-avx512vnni"),
        "avx512bw",
    ),
    (("x86_64-unknown-linux-gnu", "znver4", "+avx2,+avx512f,+avx512vnni,-avx512bw"), "avx2"),
    (("x86_64-unknown-linux-gnu", "unheard-of", ""), "sse2"),
    (("x86_64-apple-darwin", "cascadelake", ""), "vnni"),
    (("aarch64-unknown-linux-gnu", "generic", ""), "generic"),
    (("aarch64-unknown-linux-gnu", "generic", "+neon,+dotprod"), "dotprod"),
    (("aarch64-unknown-linux-gnu", "generic", "+neon,+dotprod,+i8mm"), "i8mm"),
    (("riscv64-unknown-linux-gnu", "generic-rv64", ""), "generic"),
]
"""Targets of which this machine is one at most, and their paths."""


@pytest.mark.parametrize(("target", "path"), TARGETS)
def test_the_path_follows_from_the_target_alone(target: tuple[str, str, str], path: str) -> None:
    assert _isa.choose(target).name == path


@pytest.mark.parametrize("target", [target for target, _ in TARGETS], ids="-".join)
def test_the_tile_of_no_target_has_a_float_instruction(target: tuple[str, str, str]) -> None:
    text = str(tile_module(*target)).replace('"', "")
    assert float_lines(text) == []
    spoiled = text.replace("ret void", "%x = uitofp i64 1 to float\n  ret void")
    assert len(float_lines(spoiled)) == 1


def test_emitters_choose_from_the_target_of_their_context() -> None:
    assert str(cpu_target.target_context.codegen().magic_tuple()[1]) == _isa.current_target()[1]
    assert _isa.choose(_isa.current_target()) == _isa.select()
