"""Many images: where they come from, inference and evaluation over them, the journal, the processes."""
