"""Who says how good an answer is: rules, trained reward models, servers, people."""
