"""What can be said from judged answers, with intervals."""
