"""`steelyard team`: keys that share a tenant, models, limits and a budget."""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from steelyard.cli.key import add_limits, limits_of, lines_of, models_of, used
from steelyard.cli.talk import Talk

if TYPE_CHECKING:
    from steelyard.access import Team
    from steelyard.cli.installation import Installation

HELP = "Teams: API keys and callers with tokens that share a tenant, models, limits and a budget."

_LIMITS = ("rpm", "tpm", "rpd", "tpd", "budget")
_CLEARABLE = ("models", "tenant", *_LIMITS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, text in (("new", "make a team"), ("set", "change what is given, leave the rest")):
        made = verbs.add_parser(verb, help=text)
        made.add_argument("name", metavar="NAME")
        made.add_argument("--tenant", help="whom its requests are of (default: the team itself)")
        add_limits(made)
        if verb == "set":
            made.add_argument(
                "--clear",
                action="append",
                default=[],
                choices=_CLEARABLE,
                help="take one away; may be repeated",
            )
    verbs.add_parser("ls", help="the teams")
    for verb, text in (("show", "a team, its keys and what it used"), ("drop", "remove a team without keys")):
        verbs.add_parser(verb, help=text).add_argument("name", metavar="NAME")


def run(args: argparse.Namespace, talk: Talk) -> int:
    from steelyard.access import Team
    from steelyard.cli.installation import Installation

    home = Installation.open(args.home)
    match args.verb:
        case "new":
            team = Team(args.name, args.tenant, models_of(args), limits_of(args))
            home.store.add_team(team)
        case "set":
            team = _changed(_found(home, args.name), args)
            home.store.set_team(team)
        case "drop":
            home.store.remove_team(args.name)
            talk.data(f"{args.name} is removed", {"name": args.name, "removed": True})
            return 0
        case "show":
            return _show(home, args.name, talk)
        case _:
            return _list(home, talk)
    talk.data("\n".join(lines_of(team.to_json(), "")), team.to_json())
    return 0


def _changed(team: "Team", args: argparse.Namespace) -> "Team":
    from steelyard.errors import WrongUsage

    given = limits_of(args)
    for name in args.clear:
        if getattr(args, name) is not None:
            raise WrongUsage(f"--{name} and --clear {name} exclude each other")
    changed = {name: getattr(given, name) for name in _LIMITS if getattr(given, name) is not None}
    limits = replace(team.limits, **changed, **{name: None for name in args.clear if name in _LIMITS})
    models = models_of(args) if args.models is not None else team.models
    tenant = args.tenant if args.tenant is not None else team.tenant
    return replace(
        team,
        tenant=None if "tenant" in args.clear else tenant,
        models=() if "models" in args.clear else models,
        limits=limits,
    )


def _list(home: "Installation", talk: Talk) -> int:
    keys = home.store.api_keys()
    teams = home.store.teams()
    lines = []
    for team in teams:
        count = sum(key.team == team.name for key in keys)
        limits = ", ".join(f"{name} {value}" for name, value in team.limits.to_json().items())
        lines.append(f"{team.name:<20} {team.tenant or '-':<14} {count:>4} keys  {limits}")
    talk.data(
        "\n".join(lines) or "no teams yet; run: steelyard team new NAME", [team.to_json() for team in teams]
    )
    return 0


def _show(home: "Installation", name: str, talk: Talk) -> int:
    from steelyard.cli.installation import clock

    team = _found(home, name)
    members = [key.name for key in home.store.api_keys() if key.team == name]
    shown = {**team.to_json(), "keys": members, "used": used(home, f"team:{name}", clock())}
    talk.data("\n".join(lines_of(shown, home.config.access.currency)), shown)
    return 0


def _found(home: "Installation", name: str) -> "Team":
    from steelyard.errors import WrongUsage

    for team in home.store.teams():
        if team.name == name:
            return team
    raise WrongUsage(f"there is no team {name!r}; see: steelyard team ls")
