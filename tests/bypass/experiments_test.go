package bypass

var experiments []bypass
