from jaxmeta.signatures import names_options_of as names_options_of
