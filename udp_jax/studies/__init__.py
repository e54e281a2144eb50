"""Studies: experiments composed of stages."""
