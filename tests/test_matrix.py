"""Compile targets x threads x fused and unfused: one digest per node, and the instructions each target really got."""

from __future__ import annotations

import argparse
import dataclasses
import re
from typing import Any

import matrix
import pytest
from matrix import float_lines

pytest.importorskip("numba")
from llvmlite import binding, ir
from numba.core.registry import cpu_target

import intseg.plan.plan  # noqa: F401 - registers every kernel
from intseg.kernels import _isa, _jit, _tile

HAVE = set(_isa.current_target()[2].split(","))
OPTIONS = argparse.Namespace(graphs=0, adversarial=0, seed=0, code=True)

# Setting -> (must occur in the assembly, must not occur).
CODE: dict[str, tuple[set[str], set[str]]] = {
    "host": (set(), set()),
    "skylake-avx512": ({"zmm", "vpmaddwd"}, {"vpdpbusd", "vpermi2b"}),
    "haswell": ({"ymm", "vpmaddwd"}, {"zmm", "vpdpbusd"}),
    "x86-64-v2": ({"pmaddwd"}, {"ymm", "zmm", "vpdpbusd", "vpmaddwd"}),
    "generic": ({"pmaddwd"}, {"ymm", "zmm", "vpdpbusd", "vpmaddwd"}),
    "plain IR": (set(), {"vpdpbusd", "vpermi2b"}),
    # Paths of AArch64 with plain IR in place of their instruction: layouts, packing and what makes up for signed bytes.
    "as dotprod": (set(), {"vpermi2b"}),
    "as i8mm": (set(), {"vpermi2b"}),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, matrix.Outcome]:
    """The golden models in every mode but the definition's own, in settings that this CPU can run or not."""
    wanted = [dataclasses.replace(s, modes=matrix.MODES[1:]) for s in matrix.settings() if s.name in CODE]
    found = matrix.run_all(wanted, OPTIONS, tmp_path_factory.mktemp("matrix"), 2, lambda outcome: None)
    return {outcome.setting.name: outcome for outcome in found}


def test_every_cell_gives_the_same_digest_at_every_node(outcomes: dict[str, matrix.Outcome]) -> None:
    lines, well = matrix.summary(list(outcomes.values()), OPTIONS)
    print(*lines, sep="\n")
    assert well, [*lines, *(outcome.failed for outcome in outcomes.values())]
    assert outcomes.keys() == CODE.keys()
    for outcome in outcomes.values():
        assert outcome.not_run or all(cell["values"] > 100 for cell in outcome.report["cells"])


@pytest.mark.parametrize("name", CODE)
def test_the_assembly_is_that_of_the_target(name: str, outcomes: dict[str, matrix.Outcome]) -> None:
    setting, report, (present, absent) = outcomes[name].setting, outcomes[name].report, CODE[name]
    if not report:
        pytest.skip(outcomes[name].not_run)
    assert setting.name in (report["target"], "host") or setting.forced  # its path is run_setting's to compare
    for word in present:
        assert report["assembly"][word] > 0, f"{word} is missing"
    for word in absent:
        assert report["assembly"][word] == 0, f"{word} is there"
    # Plain IR names no instruction of a CPU; what LLVM makes of it is its own choice, vpdpwssd too.
    if setting.forced == "generic":
        assert report["intrinsics"] == []


def test_the_host_uses_the_best_it_has(outcomes: dict[str, matrix.Outcome]) -> None:
    if "+avx512vnni" in HAVE:
        assert outcomes["host"].report["path"].startswith("vnni")
        assert outcomes["host"].report["assembly"]["vpdpbusd"] >= 24


def test_no_kernel_of_any_target_has_a_float_instruction(outcomes: dict[str, matrix.Outcome]) -> None:
    kernels = {n for n in _jit.REGISTRY if not n.startswith("test_")}
    for name, outcome in outcomes.items():
        if outcome.report:
            assert outcome.report["floats"] == {key: [] for key in kernels}, name


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
