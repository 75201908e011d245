"""No pickle runs anything, escapes as an exception, or is called safe without proof."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from ckptd.validators import Inspection, Safety, inspect_checkpoint
from ckptd.validators.unpickle import load_inert
from tests.validators.checkpoint_files import codes, inspect_bytes
from tests.validators.hostile import (
    KILLERS,
    checkpoint_around,
    hostile_checkpoint,
    hostile_pickles,
    name_opcode,
    state_dict_of,
    tensor_opcodes,
)

PICKLES = hostile_pickles()
RECORDS = {"data/0": b"\0" * 16}
LIMITED = """
import sys
from ckptd.validators import inspect_checkpoint
inspection = inspect_checkpoint(sys.argv[1])
print(inspection.safety, *[finding.code for finding in inspection.findings])
"""
WATCHED = """
import sys
from ckptd.validators import inspect_checkpoint
inspect_checkpoint(sys.argv[1])  # whatever is loaded lazily is loaded now
before = set(sys.modules)
events, opened = set(), []

def hook(event, arguments):
    if event == "open":
        opened.append(arguments[0])
    elif event not in ("builtins.id", "marshal.dumps", "fcntl.fcntl"):  # our own, and harmless: nothing is loaded
        events.add(event)

sys.addaudithook(hook)
for path in sys.argv[2:]:
    inspect_checkpoint(path)
problems = [*events, *(set(sys.modules) - before)]
if opened != sys.argv[2:]:
    problems.append("opened")
print(problems)
"""


@pytest.fixture(scope="module")
def inspections(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Inspection]:
    directory = tmp_path_factory.mktemp("hostile")
    harmless = (name for name in PICKLES if name not in KILLERS)
    return {name: inspect_bytes(directory, checkpoint_around(PICKLES[name], RECORDS)) for name in harmless}


@pytest.mark.parametrize("name", sorted(set(PICKLES) - KILLERS))
def test_whatever_the_pickle_the_answer_can_be_sent_and_read_again(
    name: str, inspections: dict[str, Inspection]
) -> None:
    inspection = inspections[name]
    for codec in (msgspec.json, msgspec.msgpack):
        encoded = codec.encode(inspection)
        assert len(encoded) < 2_000_000
        assert codec.decode(encoded, type=Inspection) == inspection


EXPECTED = {
    "second_stream": "pickle.second_stream",
    "junk_after_stop": "pickle.second_stream",
    "global_flood": "pickle.limits",
    "nested_lists": "pickle.limits",
    "build_on_class": "pickle.malformed",
    "build_on_known_class": "pickle.malformed",
    "build_on_dict_class": "pickle.malformed",
    "build_on_tuple_class": "pickle.malformed",
    "build_on_dtype": "pickle.malformed",
    "extension_1": "pickle.malformed",
    "extension_2": "pickle.malformed",
    "extension_4": "pickle.malformed",
    "next_buffer": "pickle.malformed",
    "no_stop": "pickle.malformed",
    "empty": "pickle.malformed",
    "tensor_storage_missing": "tensor.missing_storage",
    "tensor_key_climbs": "tensor.missing_storage",
    "tensor_numel_too_large": "tensor.missing_storage",
    "tensor_offset_negative": "tensor.out_of_bounds",
    "tensor_offset_outside": "tensor.out_of_bounds",
    "tensor_shape_too_large": "tensor.out_of_bounds",
    "tensor_shape_holds_bool": "tensor.out_of_bounds",
    "tensor_shape_of_rank_5000": "tensor.out_of_bounds",
    "tensor_stride_outside": "tensor.out_of_bounds",
    "tensor_stride_negative": "tensor.out_of_bounds",
}


@pytest.mark.parametrize("name", EXPECTED)
def test_an_attack_is_named(name: str, inspections: dict[str, Inspection]) -> None:
    assert EXPECTED[name] in codes(inspections[name])
    assert not inspections[name].is_valid


DANGEROUS = [
    "inst",
    "obj",
    "os_system",
    "posix_system",
    "eval",
    "python_2_eval",
    "exec_by_stack_global",
    "name_from_memo",
    "dotted_name",
    "getattr_chain",
    "partial",
    "nested_torch_load",
    "hidden_in_popped_value",
]


@pytest.mark.parametrize("name", DANGEROUS)
def test_a_dangerous_name_is_found_however_it_is_hidden(name: str, inspections: dict[str, Inspection]) -> None:
    assert inspections[name].safety is Safety.UNSAFE
    assert "pickle.dangerous_name" in codes(inspections[name])
    assert inspections[name].unsafe_globals


def test_a_pickle_that_was_not_parsed_to_its_end_is_never_safe(inspections: dict[str, Inspection]) -> None:
    for name, inspection in inspections.items():
        if codes(inspection) & {"pickle.second_stream"} or any(
            "cannot be parsed" in finding.message for finding in inspection.findings
        ):
            assert inspection.safety is not Safety.SAFE, name


def test_names_seen_before_a_failure_still_count(tmp_path: Path) -> None:
    data = b"\x80\x04" + name_opcode("os", "system") + b"\xff"
    inspection = inspect_bytes(tmp_path, checkpoint_around(data))
    assert inspection.safety is Safety.UNSAFE
    assert {"pickle.dangerous_name", "pickle.malformed"} <= codes(inspection)


def test_dangerous_names_come_before_unknown_ones(tmp_path: Path) -> None:
    data = b"\x80\x04" + name_opcode("my.models", "Net") + b"0" + name_opcode("os", "system") + b"0}."
    assert inspect_bytes(tmp_path, checkpoint_around(data)).unsafe_globals == ("os.system", "my.models.Net")


def test_lone_surrogates_and_control_characters_are_escaped(inspections: dict[str, Inspection]) -> None:
    assert inspections["lone_surrogates"].tensors[0].name == "state_dict.\\ud800"
    assert inspections["surrogate_name"].unsafe_globals == ("\\ud800.x",)


ODD_NAMES = [
    "newline_in_name",
    "nul_in_name",
    "nul_in_module",
    "cyrillic_letter",
    "full_width_letters",
    "zero_width_space",
    "right_to_left",
    "trailing_dot",
    "empty_module",
    "empty_name",
    "only_dots",
    "attribute_of_allowed",
    "class_of_allowed",
    "module_as_name",
    "main",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_that_looks_like_an_allowed_one_proves_nothing(name: str, inspections: dict[str, Inspection]) -> None:
    inspection = inspections[name]
    assert inspection.safety is not Safety.SAFE
    assert inspection.weights_only is False
    assert len(inspection.unsafe_globals) == 1
    assert inspection.unsafe_globals[0].isascii()
    assert inspection.unsafe_globals[0].isprintable()


def test_a_letter_that_looks_like_another_is_written_out(inspections: dict[str, Inspection]) -> None:
    assert inspections["cyrillic_letter"].unsafe_globals == ("t\\u043erch.Size",)
    assert "t\\u043erch.Size" in inspections["cyrillic_letter"].findings[0].message


def test_pythons_old_name_of_a_module_is_known_under_every_protocol(inspections: dict[str, Inspection]) -> None:
    assert inspections["protocol_switched"].unsafe_globals == ("builtins.eval",)


def test_an_ordered_dict_cannot_be_made_to_lie_about_its_items() -> None:
    result = load_inert(PICKLES["build_on_ordered_dict"])
    assert result.failure is None
    assert callable(result.value.items)


def test_stand_ins_of_one_file_are_untouched_by_another() -> None:
    for name in ("build_on_class", "build_on_known_class", "build_on_dict_class", "build_on_tuple_class"):
        assert load_inert(PICKLES[name]).failure is not None
    sound = load_inert(state_dict_of(tensor_opcodes()))
    assert sound.failure is None
    assert sound.value["state_dict"]["w"].shape == (4,)


def test_extension_codes_are_refused_even_where_the_process_has_them_cached(tmp_path: Path) -> None:
    """A cached extension would be handed out as the *real* object, past every stand-in."""
    program = (
        "import copyreg, os, pickle\n"
        "from ckptd.validators.unpickle import load_inert\n"
        "copyreg.add_extension('os', 'getpid', 1)\n"
        "assert pickle.loads(b'\\x80\\x04\\x82\\x01.') is os.getpid\n"
        "result = load_inert(b'\\x80\\x04\\x82\\x01.')\n"
        "assert result.value is None and 'refused' in result.failure.message, result\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=50)


@pytest.mark.parametrize("name", sorted(KILLERS))
def test_a_killer_ends_its_process_or_is_stopped_by_a_limit(name: str, tmp_path: Path) -> None:
    """What cannot be survived in the process ends it by a signal; nothing is ever called safe and valid."""
    path = tmp_path / "killer.ckpt"
    path.write_bytes(hostile_checkpoint(name))

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))
        resource.setrlimit(resource.RLIMIT_CPU, (1, 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    done = subprocess.run(
        [sys.executable, "-c", LIMITED, path], capture_output=True, text=True, timeout=50, preexec_fn=limit, check=False
    )
    if done.returncode < 0:
        assert -done.returncode in (signal.SIGSEGV, signal.SIGKILL, signal.SIGXCPU)
    else:
        assert done.stdout.split() == ["unknown", "pickle.limits"], done.stderr


def test_nothing_is_imported_opened_or_run_by_any_pickle(tmp_path: Path) -> None:
    """Audit events of a process that inspects all of them: only our own openings of the files themselves."""
    paths = []
    for name in sorted(set(PICKLES) - KILLERS):
        path = tmp_path / f"{name}.ckpt"
        path.write_bytes(checkpoint_around(PICKLES[name], RECORDS))
        paths.append(os.fspath(path))
    sound = tmp_path / "sound.ckpt"
    sound.write_bytes(checkpoint_around(state_dict_of(tensor_opcodes()), RECORDS))
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, sound, *paths], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.stdout == "[]\n", done.stderr[-2000:]


def test_the_garbage_collector_is_left_as_it_was(tmp_path: Path) -> None:
    import gc

    path = tmp_path / "any.ckpt"
    path.write_bytes(checkpoint_around(b"\xff"))
    assert gc.isenabled()
    inspect_checkpoint(path)
    assert gc.isenabled()
    gc.disable()
    try:
        inspect_checkpoint(path)
        assert not gc.isenabled()
    finally:
        gc.enable()
