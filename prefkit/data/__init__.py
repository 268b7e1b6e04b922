"""Records of any known layout in one form, and token ids from them."""

from prefkit.data.records import encode_records, load_records

__all__ = ["encode_records", "load_records"]
