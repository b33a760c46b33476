"""Paging modes: what each operation becomes, hooked or not."""
