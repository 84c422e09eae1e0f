"""The verb `export_c_array`: a .tflite file as C source, for devices without files."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tfopt.core.checks import shown
from tfopt.core.errors import FileError, InvalidArgumentError
from tfopt.core.files import check_writable, write_whole
from tfopt.deploy.runner import TFLiteModel

SUFFIXES = (".h", ".c", ".cc", ".cpp")
A_LINE = 12  # bytes in a line of the array

# The keywords of C11, of C23 and of C++ up to C++20, with what <stdalign.h> and <iso646.h> define.
_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
        alignas alignof and and_eq asm auto bitand bitor bool break case catch char char16_t char32_t char8_t class
        co_await co_return co_yield compl concept const const_cast consteval constexpr constinit continue decltype
        default delete do double dynamic_cast else enum explicit export extern false float for friend goto if inline int
        long mutable namespace new noexcept not not_eq nullptr operator or or_eq private protected public register
        reinterpret_cast requires restrict return short signed sizeof static static_assert static_cast struct switch
        template this thread_local throw true try typedef typeid typename typeof typeof_unqual union unsigned using
        virtual void volatile wchar_t while xor xor_eq _Alignas _Alignof _Atomic _BitInt _Bool _Complex _Decimal128
        _Decimal32 _Decimal64 _Generic _Imaginary _Noreturn _Static_assert _Thread_local
        """,
    )
)
_ALIGNAS = """\
#ifndef __cplusplus
#include <stdalign.h>
#endif
"""
_HEADER = """\
#ifndef {guard}
#define {guard}
{body}
#endif
"""
_DECLARATION = """
#ifdef __cplusplus
extern "C" {{
#endif
extern const unsigned char {name}[];
extern const unsigned int {name}_len;
#ifdef __cplusplus
}}
#endif
"""
_DEFINITION = """
alignas(16) {static}const unsigned char {name}[] = {{
{rows}
}};
{static}const unsigned int {name}_len = {length};
"""


def export_c_array(
    model: TFLiteModel | str | os.PathLike, out: str | os.PathLike, *, name: str | None = None
) -> tuple[Path, ...]:
    """Writes a .tflite file as a C array, `alignas(16) const unsigned char name[]`, and its length `name_len`.

    Args:
        model: a `TFLiteModel`, or the path of a .tflite file.
        out: a `.h` file gets all; a `.c`, `.cc` or `.cpp` file gets the array, a `.h` file beside it the declarations.
            Both are C11 and C++11.
        name: of the array; by default that of `out`, with `_` for what C does not allow.

    Returns:
        The files that were written, the array first. Each appears whole or not at all.

    Raises:
        FileError: the model cannot be read, or the files cannot be written.
        InvalidArgumentError: `name` is no name in C.

    Example:
        >>> import tempfile
        >>> from tfopt.deploy.tflite import export_tflite
        >>> import keras
        >>> folder = tempfile.mkdtemp()
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> _ = export_tflite(model, folder + "/model.tflite")
        >>> [path.name for path in export_c_array(folder + "/model.tflite", folder + "/model.cc")]
        ['model.cc', 'model.h']
    """
    target = check_writable(out)
    if target.suffix not in SUFFIXES:
        raise FileError(f"A C array is written as {', '.join(SUFFIXES)}.", received=f"'{target}'")
    name = _name_for(target) if name is None else name
    _check_name(name)
    file = model if isinstance(model, TFLiteModel) else TFLiteModel(model)
    if target.suffix == ".h":
        return (write_whole(target, _guarded(name, _ALIGNAS + _definition(name, file.content, "static "))),)
    header = check_writable(target.with_suffix(".h"))
    source = f'#include "{header.name}"\n\n{_ALIGNAS}{_definition(name, file.content)}'
    return write_whole(target, source), write_whole(header, _guarded(name, _DECLARATION.format(name=name)))


def _name_for(target: Path) -> str:
    """A name in C after that of the file."""
    name = re.sub(r"\W|^(?=\d)", "_", target.stem, flags=re.ASCII)
    return f"{name}_" if name in _WORDS else name


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or name in _WORDS:
        raise InvalidArgumentError(
            "`name` must be a name in C and C++: letters, digits and underscores, no digit first, no word of them.",
            received=shown(name),
        )


def _guarded(name: str, body: str) -> str:
    return _HEADER.format(guard=f"{name.upper()}_H_", body=body)


def _definition(name: str, content: bytes, static: str = "") -> str:
    lines = (content[start : start + A_LINE] for start in range(0, len(content), A_LINE))
    rows = "\n".join("  " + " ".join(f"0x{byte:02x}," for byte in line) for line in lines)
    return _DEFINITION.format(name=name, static=static, rows=rows, length=len(content))
