"""The hardware: page-table formats, walks, TLBs. Knows nothing of guests or hypervisors."""
