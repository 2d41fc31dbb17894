"""HTTP in front of the gate: an asyncio protocol over httptools, no framework, no database in the way."""
