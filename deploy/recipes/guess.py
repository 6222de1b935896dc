"""An environment for outputs of two turns: whoever gets a sum wrong is asked again."""


class Guess:
    """Of one output; docs/environments.md says what is called when."""

    def __init__(self, question, gold, columns):
        self.question, self.gold, self.turns, self.right = question, gold, 0, False

    def step(self, output):
        """The reply to the policy's turn, or None when the episode is over."""
        self.turns += 1
        self.right = output.rpartition("#### ")[2].strip() == self.gold
        return None if self.right else self.question

    def rewards(self):
        """What the episode is worth, by part."""
        return {"solved": float(self.right), "at_once": 0.5 * (self.right and self.turns == 1)}
