"""Chat templates run in a process of their own: Jinja's sandbox bounds what they reach, not their time and memory."""
