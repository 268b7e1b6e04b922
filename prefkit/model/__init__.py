"""From token ids to log-probs, and from a model to answers."""
