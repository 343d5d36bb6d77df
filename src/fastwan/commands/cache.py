"""The command ``cache``."""

from __future__ import annotations

import click

from fastwan.commands.options import example, json_option
from fastwan.commands.running import report_errors
from fastwan.console import print_json, tell
from fastwan.errors import BadInput


@click.command("cache", epilog=example("cache ls"))
@click.argument("action", type=click.Choice(["ls", "rm", "prune", "verify"]))
@click.argument("keys", nargs=-1)
@click.option("--days", type=click.FloatRange(0), help="For prune: what was not used for so long.")
@click.option("--max-bytes", type=click.IntRange(0), help="For prune: what the rest may take.")
@json_option
@report_errors
def cache(
    action: str, keys: tuple[str, ...], days: float | None, max_bytes: int | None, as_json: bool
) -> int:
    """List finished work that is kept, remove it by KEYS or by age and size, or check it.

    verify exits 4 if an entry was damaged; it is removed, and made anew when it is needed.
    """
    if bool(keys) is not (action == "rm"):
        what = "keys of entries are missing" if action == "rm" else "keys are for rm"
        raise BadInput(what, where="KEYS", fix="fastwan-export cache ls shows them")
    if action != "prune" and (days, max_bytes) != (None, None):
        raise BadInput("an option of cache prune", where="--days, --max-bytes")
    from fastwan import cache_list

    match action:
        case "ls":
            report = cache_list.list_cache()
        case "rm":
            report = cache_list.remove_entries(keys)
        case "prune":
            report = cache_list.prune_cache(days, max_bytes)
        case _:
            report = cache_list.verify_cache()
    if as_json:
        print_json(report)
    else:
        tell(cache_list.render(report))
    return 4 if any(each.damaged for each in report.entries) else 0
