"""A table as data, and its three printed forms: Markdown, CSV and LaTeX (booktabs). The page draws the same data.

An entry is a number with an interval, or a text, or missing with a reason; reasons become footnotes.
"""

from __future__ import annotations

import csv
import io
import re
import string
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Rank = Literal[0, 1, 2]


@dataclass(frozen=True)
class Column:
    """`arrow` says which way is better. `meaning` is the tooltip and the legend line."""

    key: str
    title: str
    unit: str = ""
    arrow: str = ""
    meaning: str = ""

    @property
    def heading(self) -> str:
        return self.title + (f" ({self.unit})" if self.unit else "")


@dataclass(frozen=True)
class Entry:
    """`text`, `low_text`, `high_text` are printed; the floats are stored in CSV and used for sorting."""

    text: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    low_text: str = ""
    high_text: str = ""
    n: int | None = None
    note: str = ""  # why it is missing, or a remark on the number
    rank: Rank = 0  # 1 best, 2 second, 0 unranked

    @property
    def interval(self) -> str:
        return f"[{self.low_text}, {self.high_text}]" if self.low_text and self.high_text else ""


@dataclass(frozen=True)
class Row:
    key: str
    label: str
    kind: str
    entries: dict[str, Entry]


@dataclass(frozen=True)
class Table:
    name: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    legend: str = ""
    notes: dict[str, str] = field(init=False)  # reason -> letter, in order of appearance

    def __post_init__(self) -> None:
        reasons = [row.entries[c.key].note for row in self.rows for c in self.columns if c.key in row.entries]
        unique = list(dict.fromkeys(r for r in reasons if r))
        object.__setattr__(self, "notes", {reason: _letter(i) for i, reason in enumerate(unique)})

    def mark(self, entry: Entry) -> str:
        """The footnote letter of an entry, or nothing."""
        return self.notes.get(entry.note, "")

    def markdown(self) -> str:
        """GitHub Markdown; best bold, second underlined; missing is a dash with its footnote."""
        head = ["", *(md(c.heading) + (f" {c.arrow}" if c.arrow else "") for c in self.columns)]
        lines = [f"### {md(self.title)}", "", md(self.caption), ""]
        lines += [_md_row(head), _md_row([":--", *("--:" for _ in self.columns)])]
        for row in self.rows:
            lines.append(_md_row([md(row.label), *(self._md_entry(row.entries[c.key]) for c in self.columns)]))
        if self.legend:
            lines += ["", md(self.legend)]
        if self.notes:
            lines += ["", *(f"<sup>{letter}</sup> {md(reason)}  " for reason, letter in self.notes.items())]
        return "\n".join(lines) + "\n"

    def _md_entry(self, entry: Entry) -> str:
        text = md(entry.text) or "—"
        text = {1: f"**{text}**", 2: f"<ins>{text}</ins>"}.get(entry.rank, text)
        interval = f" {md(entry.interval)}" if entry.interval else ""
        note = f"<sup>{self.mark(entry)}</sup>" if entry.note else ""
        return f"{text}{interval}{note}"

    def latex(self, file: str = "") -> str:
        """A full-width booktabs table: each row's intervals stand in small print under its numbers.

        `file` is the stem of the files that it is written among: tables of one name in two of them have labels of their own.
        """
        label = self.name if file in ("", self.name) else f"{file}-{self.name}"
        spec = "@{}l" + "r" * len(self.columns) + "@{}"
        titles = " & ".join(["", *(rf"{tex(c.title)}{_tex_arrow(c.arrow)}" for c in self.columns)])
        units = " & ".join(["", *(rf"{{\tiny {tex(c.unit)}}}" if c.unit else "" for c in self.columns)])
        lines = [
            "% needs \\usepackage{booktabs}",
            r"\begin{table*}[t]",
            r"\centering",
            r"\setlength{\belowcaptionskip}{5pt}",
            rf"\caption{{{tex(self.caption)}}}",
            rf"\label{{tab:{re.sub('[^a-z0-9]+', '-', label.lower())}}}",
            r"\scriptsize",
            r"\setlength{\tabcolsep}{1.8pt}",
            rf"\begin{{tabular}}{{{spec}}}",
            r"\toprule",
            titles + r" \\[-2pt]",
            units + r" \\",
            r"\midrule",
        ]
        previous = ""
        for row in self.rows:
            if previous and row.kind != previous:
                lines.append(r"\addlinespace[3pt]")
            previous = row.kind
            entries = [row.entries[c.key] for c in self.columns]
            # Braces: a label that starts with a bracket would be read as an argument of the row end before it.
            lines.append(" & ".join([f"{{{tex(row.label)}}}", *(self._tex_entry(e) for e in entries)]) + r" \\")
            if any(e.interval for e in entries):
                lines[-1] += "[-1pt]"
                small = (rf"{{\tiny {tex(e.interval)}}}" if e.interval else "" for e in entries)
                lines.append(" & ".join(["", *small]) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}", "", r"\vspace{2pt}\parbox{\textwidth}{\tiny"]
        lines.append(tex(self.legend))
        lines += [rf"\textsuperscript{{{letter}}}\,{tex(reason)}." for reason, letter in self.notes.items()]
        lines += ["}", r"\end{table*}"]
        return "\n".join(line for line in lines if line is not None) + "\n"

    def _tex_entry(self, entry: Entry) -> str:
        text = tex(entry.text) or "--"
        text = {1: rf"\textbf{{{text}}}", 2: rf"\underline{{{text}}}"}.get(entry.rank, text)
        return text + (rf"\textsuperscript{{{self.mark(entry)}}}" if entry.note else "")


def csv_text(tables: list[Table]) -> str:
    """One line a row over all columns of `tables`: value, low, high, n and note. Missing is empty, never 0."""
    columns = {c.key: c for table in tables for c in table.columns}
    rows = {row.key: row for row in tables[0].rows}
    entries: dict[str, dict[str, Entry]] = {key: {} for key in rows}
    for table in tables:
        for row in table.rows:
            entries[row.key].update(row.entries)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = ["cell", "label", "kind"]
    for key in columns:
        head += [key, f"{key}_low", f"{key}_high", f"{key}_n", f"{key}_note"]
    writer.writerow(head)
    for key, row in rows.items():
        line: list[object] = [_harmless(key), _harmless(row.label), row.kind]
        for column in columns:
            e = entries[key][column]
            line += [
                *(_number(x) for x in (e.text if e.value is None else e.value, e.low, e.high, e.n)),
                _harmless(e.note),
            ]
        writer.writerow(line)
    return out.getvalue()


def write(tables: list[Table], folder: Path, name: str) -> list[Path]:
    """Write NAME.md, NAME.csv (all columns) and one NAME-<table>.tex each, NAME.tex of a table of that name."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.md", folder / f"{name}.csv"]
    paths[0].write_text("\n".join(t.markdown() for t in tables), encoding="utf-8")
    paths[1].write_text(csv_text(tables), encoding="utf-8")
    for table in tables:
        path = folder / (f"{name}.tex" if table.name == name else f"{name}-{table.name}.tex")
        path.write_text(table.latex(name), encoding="utf-8")
        paths.append(path)
    return paths


def _number(value: object) -> object:
    if value is None:
        return ""
    return _harmless(value) if isinstance(value, str) else value


def _harmless(text: str) -> str:
    """A text that a spreadsheet would run as a formula gets a leading apostrophe."""
    return f"'{text}" if text[:1] in ("=", "+", "@") else text


def _letter(index: int) -> str:
    letters = string.ascii_lowercase
    return letters[index] if index < 26 else letters[index // 26 - 1] + letters[index % 26]


def _md_row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def md(text: str) -> str:
    """Text without power in Markdown or in the HTML that Markdown lets through."""
    text = re.sub(r"\s+", " ", text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_|\[\]~$])", r"\\\1", text)


_TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "−": r"$-$",
    "×": r"$\times$",
    "∞": r"$\infty$",
    "→": r"$\rightarrow$",
    "⁻": r"\textsuperscript{$-$}",
    "³": r"\textsuperscript{3}",
    "²": r"\textsuperscript{2}",
    "±": r"$\pm$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "β": r"$\beta$",
    "α": r"$\alpha$",
    "…": r"\ldots{}",
    "–": "--",
    "—": "---",
    "·": r"$\cdot$",
    "’": "'",
}


def tex(text: str) -> str:
    """Text without power in LaTeX; characters that pdflatex cannot print become '?'."""
    text = re.sub(r"\s+", " ", text)
    return "".join(_TEX.get(c, c if " " <= c <= "~" or "À" <= c <= "ÿ" else "?") for c in text)


def _tex_arrow(arrow: str) -> str:
    inside = {"↑": r"\uparrow", "↓": r"\downarrow", "→1": r"\rightarrow\!1"}.get(arrow)
    return rf"\,${inside}$" if inside else ""
