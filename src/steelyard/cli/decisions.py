"""How a decision looks on a terminal: every rule, its state, its reason, and what would supply it."""

from steelyard.cli.talk import Talk
from steelyard.policy import Decision, State

_STYLE = {State.MET: "good", State.UNMET: "bad", State.UNKNOWN: "warn"}


def decision_text(decision: Decision, talk: Talk, name: str) -> str:
    """One line a rule, a second one for the command that would supply what is missing."""
    head = talk.paint("allowed", "good") if decision.allowed else talk.paint("refused", "bad")
    lines = [f"{name} {decision.model}: {head}"]
    for rule in decision.rules:
        lines.append(
            f"  {talk.paint(f'{rule.state.value:<8}', _STYLE[rule.state])}{rule.id:<18} {rule.reason}"
        )
        if rule.supply:
            lines.append(f"  {'':<26} supply it: {rule.supply}")
    return "\n".join(lines)


def show_decision(decision: Decision, talk: Talk, name: str) -> None:
    """Print the decision as the command's result."""
    talk.data(decision_text(decision, talk, name), decision.to_json())
