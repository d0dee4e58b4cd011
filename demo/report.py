"""What a demo prints: headings, facts, tables; plain text of at most 120 columns."""

WIDTH = 120


def heading(text):
    """A line that begins a part."""
    print(f"\n== {text}", flush=True)


def fact(name, text):
    """One finding."""
    print(f"{name:<22} {text}", flush=True)


def table(rows):
    """Rows as aligned columns, numbers to the right; what does not fit is cut."""
    if not rows:
        return
    names = list(rows[0])
    right = {name for name in names if all(_number(row[name]) for row in rows)}
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in names}
    for row in [dict(zip(names, names)), *rows]:
        cells = [row[name].rjust(widths[name]) if name in right else row[name].ljust(widths[name]) for name in names]
        print("  ".join(cells).rstrip()[:WIDTH], flush=True)


def count(number):
    """A number with separators."""
    return f"{round(float(number)):,}"


def _number(text):
    """Whether a cell holds a number, or nothing."""
    try:
        float(text or 0)
    except ValueError:
        return False
    return True
