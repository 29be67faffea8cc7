"""An HTTP server that speaks OpenAI's protocol, over an `AsyncEngine`. Needs the extra [serve]."""
