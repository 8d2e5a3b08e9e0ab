package bypass

var node []bypass
