"""The engine directory: its manifest, its writer, its reader. Knows no backend and no graph library."""
