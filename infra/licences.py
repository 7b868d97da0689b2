"""Licences of installed distributions as SPDX expressions, and the rule that holds for them.

The rule: everything that an installation brings along may be used in a product whose source stays
closed. So neither the GPL nor the AGPL, unless an exception to it says so (that of GCC's runtime
library does). The LGPL and the MPL bind only changed copies of their own files, and nothing here
changes any: allowed. Where a licence offers several (OR), one that is allowed is enough. A licence
that is not in `ALLOWED` is refused until somebody has read it and added it there.
"""

from __future__ import annotations

import re
from importlib.metadata import Distribution

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.utils import canonicalize_name

PERMISSIVE = frozenset(
    [
        *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSD-3-Clause-Open-MPI", "BSL-1.0"),
        *("CC0-1.0", "CNRI-Python", "FTL", "IJG", "ISC", "MIT", "MIT-0", "MIT-CMU"),
        *("MIT-open-group", "PSF-2.0", "Unicode-3.0", "Unicode-DFS-2016", "Unlicense", "WTFPL"),
        *("X11", "Zlib", "libtiff"),
    ]
)
ONLY_THEIR_OWN_FILES = frozenset(["LGPL-2.1-or-later", "LGPL-3.0-or-later", "MPL-2.0"])
EXCEPTIONS = frozenset(["GCC-exception-3.1", "LLVM-exception"])
"""Exceptions that let what is linked with the work be under any licence."""

NVIDIA = "LicenseRef-NVIDIA-Proprietary"
"""CUDA's libraries, which PyTorch's builds for GPUs bring along: free to use, and closed."""

ALLOWED = PERMISSIVE | ONLY_THEIR_OWN_FILES | {NVIDIA}

OF_CUDA = ("cuda-", "nvidia-")
"""Beginnings of the names of distributions that are NVIDIA's."""

STATED = {
    # Contributions since December 2017 are under either licence, those before under the second.
    "python-dateutil": "BSD-3-Clause AND (Apache-2.0 OR BSD-3-Clause)",
    "promql-parser": "MIT",  # by its LICENSE file; the metadata says nothing
    "libXau": "MIT-open-group",  # in Pillow's wheel, whose list does not say
}
"""Licences that were read by a person, where metadata does not say or does not say it clearly."""

SAME = {
    "apache": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd 2-clause license": "BSD-2-Clause",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "new bsd": "BSD-3-Clause",
}
"""Names that metadata uses, in small letters, and the SPDX identifiers that they mean."""

_CLASSIFIER = re.compile(r"License :: (?:OSI Approved :: )?(.+)")
_TOKEN = re.compile(r"[()]|[^\s()]+")


def licence(distribution: Distribution) -> str | None:
    """The SPDX expression of a distribution's licence; None where nothing says it clearly.

    What its metadata says counts in this order: the expression, the text, a classifier. Several
    classifiers may mean all of them or any of them, so they say nothing.
    """
    metadata = distribution.metadata
    name = canonicalize_name(metadata["Name"])
    if name in STATED:
        return STATED[name]
    classifiers = [_CLASSIFIER.fullmatch(text) for text in metadata.get_all("Classifier") or []]
    classified = [match[1] for match in classifiers if match]
    said = [metadata["License-Expression"], metadata["License"]]
    for text in filter(None, [*said, *(classified if len(classified) == 1 else [])]):
        found = normal(text) or (_which_bsd(distribution) if "bsd" in text.lower() else None)
        if found is not None and not found.startswith("LicenseRef-NVIDIA"):  # one of several
            return found
    return NVIDIA if name.startswith(OF_CUDA) else None


def normal(text: str) -> str | None:
    """An SPDX expression in its canonical form, also by another name; None for all other texts."""
    try:
        return canonicalize_license_expression(text)
    except InvalidLicenseExpression:
        return SAME.get(text.strip().lower())


def refused(expression: str) -> bool:
    """Whether the rule above forbids a licence. expression: canonical SPDX."""
    tokens = _TOKEN.findall(expression)[::-1]

    def alternatives() -> bool:
        fits = together()
        while tokens and tokens[-1] == "OR":
            tokens.pop()
            fits = together() or fits
        return fits

    def together() -> bool:
        fits = one()
        while tokens and tokens[-1] == "AND":
            tokens.pop()
            fits = one() and fits
        return fits

    def one() -> bool:
        token = tokens.pop()
        if token == "(":
            fits = alternatives()
            tokens.pop()
            return fits
        if tokens and tokens[-1] == "WITH":
            tokens.pop()
            return tokens.pop() in EXCEPTIONS
        return token in ALLOWED

    return not alternatives()


def _which_bsd(distribution: Distribution) -> str | None:
    """BSD with two or three clauses, by its text: metadata often says no more than BSD."""
    for file in distribution.files or []:
        if file.name.lower().startswith(("license", "licence", "copying")):
            text = " ".join(file.read_text(encoding="utf-8").lower().split())
            if "redistributions in binary form" in text:
                named = "neither the name" in text or "endorse or promote products" in text
                return "BSD-3-Clause" if named else "BSD-2-Clause"
    return None
