"""All classes of hook sets counted in one pass: the search's side, not for authors of modes."""
