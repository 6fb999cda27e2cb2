"""The commands toco-serve and toco-predict."""
