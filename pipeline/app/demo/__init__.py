"""`afresh demo`: one showing, what it sees and how it looks."""
